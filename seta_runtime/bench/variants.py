"""The engines that are compared. Each is a description small enough to send to a worker process as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from adapters.bank import Bank

Kind = Literal["plain", "routed", "vllm_lora"]
Asks = Literal["newest", "two", "base"]
MAX_NUM_SEQS = 32
MAX_MODEL_LEN = 1024
MAX_BATCHED_TOKENS = 2048
KV_CACHE_BYTES = 512 << 20


@dataclass(frozen=True)
class Variant:
    """One engine. `bank` and `generations` for kind "routed"; for kind "vllm_lora" `adapter`, its `rank`, and the
    engine's `modules` that it changes.

    `asks`: what its requests name: the newest generation (or the adapter), both of two generations in turns, or the
    base model, whatever is loaded. `options`: more keyword arguments of `vllm.LLM`.
    """

    name: str
    kind: Kind
    model: str
    bank: str | None = None
    generations: tuple[int, ...] = ()
    adapter: str | None = None
    rank: int = 0
    modules: tuple[str, ...] = ()
    asks: Asks = "newest"
    options: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Variant:
        return cls(**{**values, "generations": tuple(values["generations"]), "modules": tuple(values["modules"])})

    def engine_args(self) -> dict[str, Any]:
        """Keyword arguments of `vllm.LLM`; equal for all variants but for what the variant is about."""
        common = {
            "model": self.model,
            "dtype": "bfloat16",
            "enforce_eager": True,
            "max_model_len": MAX_MODEL_LEN,
            "max_num_seqs": MAX_NUM_SEQS,
            "max_num_batched_tokens": MAX_BATCHED_TOKENS,
            "enable_prefix_caching": False,
            "kv_cache_memory_bytes": KV_CACHE_BYTES,
            "disable_log_stats": True,
            **self.options,
        }
        if self.kind == "plain":
            return common
        if self.kind == "vllm_lora":
            lora = {
                "enable_lora": True,
                "max_loras": 1,
                "max_lora_rank": self.rank,
                "lora_target_modules": list(self.modules),
            }
            return common | lora
        from seta_runtime.engine_args import seta_engine_args

        assert self.bank is not None
        return common | seta_engine_args(
            Bank.open(self.bank).manifest(), Path(self.bank), max(2, len(self.generations))
        )

    def lora_requests(self) -> list[Any]:
        """What is loaded before the first request, the last one being the newest."""
        from vllm.lora.request import LoRARequest

        if self.kind == "vllm_lora":
            assert self.adapter is not None
            return [LoRARequest("adapter", 1, self.adapter)]
        paths = [f"{self.bank}/generations/{number:05d}.json" for number in self.generations]
        return [LoRARequest(f"bench@{n}", n + 1, path) for n, path in zip(self.generations, paths, strict=True)]

    def asked_for(self, loaded: list[Any]) -> list[Any]:
        """Of what is loaded, what successive requests of a batch name, in turns."""
        return {"newest": loaded[-1:], "two": loaded[-2:][::-1], "base": []}[self.asks]
