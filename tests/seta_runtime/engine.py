"""The real engine in this process: open it on a model and a bank, generate from token ids, watch its router."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapters.bank import Bank

OPTIONS: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 1024,
    "max_num_seqs": 32,
    "max_num_batched_tokens": 2048,
    "block_size": 32,  # the least on a CPU; short prompts then fill whole blocks, which prefix caching needs
    "enable_prefix_caching": False,
    "kv_cache_memory_bytes": 256 << 20,
    "disable_log_stats": True,
}


@dataclass(frozen=True)
class Answer:
    """`first_logprobs`: log-probabilities of the likeliest first tokens. `cached`: prompt tokens not computed."""

    request_id: str
    tokens: list[int]
    first_logprobs: dict[int, float]
    cached: int


@dataclass(frozen=True)
class Seen:
    """What the router pooled for one request in one step: `positions [n]`, `pooled [n, width]`."""

    positions: Tensor
    pooled: Tensor


class Engine:
    """One engine; `generation` None means the base model."""

    def __init__(self, llm: Any, bank: Path | None) -> None:
        self.llm = llm
        self.bank = bank

    def generate(
        self, prompts: Sequence[list[int]], generations: Sequence[int | None] | int | None, max_tokens: int = 8
    ) -> list[Answer]:
        """Greedy answers to prompts of token ids, all given to the engine at once."""
        from vllm import SamplingParams

        each = [generations] * len(prompts) if generations is None or isinstance(generations, int) else generations
        params = SamplingParams(temperature=0, max_tokens=max_tokens, logprobs=5)
        outputs = self.llm.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts],
            params,
            lora_request=None if self.bank is None else [self.request(generation) for generation in each],
            use_tqdm=False,
        )
        return [
            Answer(
                output.request_id,
                list(output.outputs[0].token_ids),
                {token: found.logprob for token, found in output.outputs[0].logprobs[0].items()},
                output.num_cached_tokens or 0,
            )
            for output in outputs
        ]

    def request(self, generation: int | None) -> Any:
        from vllm.lora.request import LoRARequest

        assert self.bank is not None
        path = self.bank / f"generations/{generation or 0:05d}.json"
        return None if generation is None else LoRARequest(f"test@{generation}", generation + 1, str(path))

    @property
    def runner(self) -> Any:
        """The model runner of the engine's only worker."""
        return self.llm.llm_engine.model_executor.driver_worker.worker.model_runner

    @contextmanager
    def watching(self) -> Iterator[dict[str, list[Seen]]]:
        """Record the router's prefix means by request id while the block runs."""
        router = self.runner.lora_manager._adapter_manager.router
        original, seen = router._pooled, {}

        def record(hidden: Tensor, members: Any) -> Tensor:
            pooled = original(hidden, members)
            for request_id, rows, positions in self._requests():
                seen.setdefault(request_id, []).append(Seen(positions, pooled[rows].clone()))
            return pooled

        router._pooled = record
        try:
            yield seen
        finally:
            del router._pooled

    def _requests(self) -> Iterator[tuple[str, slice, Tensor]]:
        """The requests of the running step: id, rows of the batch, positions."""
        batch, starts = self.runner.input_batch, self.runner.query_start_loc.np
        for index, internal_id in enumerate(batch.req_ids):
            rows = slice(int(starts[index]), int(starts[index + 1]))
            yield internal_id.partition("-")[0], rows, self.runner.positions[rows].clone()


@contextmanager
def open_engine(model: Path, bank: Path | None, **options: Any) -> Iterator[Engine]:
    """The engine with our plugin serving `bank`; without a bank, the plain engine. Leaves the process as it was."""
    environment, set_num_threads = dict(os.environ), torch.set_num_threads
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="ERROR", HF_HUB_OFFLINE="1")
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    from seta_runtime.engine_args import seta_engine_args
    from seta_runtime.plugin import register

    register()
    ours = {} if bank is None else seta_engine_args(Bank.open(bank).manifest(), bank, 2)
    engine = Engine(None, bank)
    try:
        engine.llm = LLM(str(model), **{**OPTIONS, **ours, **options})
        yield engine
        engine.llm.llm_engine.engine_core.shutdown()
    finally:
        engine.llm = None
        gc.collect()
        cleanup_dist_env_and_memory()
        torch.set_num_threads = set_num_threads
        os.environ.clear()
        os.environ.update(environment)
