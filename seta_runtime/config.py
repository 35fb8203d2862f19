"""What the plugin needs to know when the engine starts, carried in vLLM's `additional_config["seta"]`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from adapters.bank import MAX_EXPERTS, Manifest

VLLM_VERSION = "0.32.0"
KEY = "seta"
MIN_EXPERTS = 64


class UnsupportedEngine(RuntimeError):
    """The engine, its version or its configuration is one that the routed layer cannot serve."""


def check_ranks(pipeline_parallel_size: int) -> None:
    """Raises: UnsupportedEngine if the layers would be spread over several ranks."""
    if pipeline_parallel_size > 1:
        raise UnsupportedEngine(
            f"pipeline parallelism of {pipeline_parallel_size} found, expected 1: the gate's decision would have to "
            "travel between stages; start with pipeline_parallel_size 1, and tensor_parallel_size for several ranks"
        )


class RuntimeConfig(BaseModel):
    """`trunk_layers` and `targets` decide which modules are wrapped, so they are fixed for the engine's life.

    So are, on a GPU, the sub-blocks' edge and how many experts a generation may have: the kernel's tables are made
    once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    bank: Path
    trunk_layers: int = Field(ge=0)
    targets: tuple[str, ...] = Field(min_length=1)
    block_size: int = Field(ge=1)
    max_experts: int = Field(ge=1, le=MAX_EXPERTS)

    @staticmethod
    def is_wanted(vllm_config: Any) -> bool:
        extra = vllm_config.additional_config
        return isinstance(extra, dict) and KEY in extra

    @classmethod
    def of(cls, vllm_config: Any) -> RuntimeConfig:
        return cls.model_validate(vllm_config.additional_config[KEY])

    @staticmethod
    def check_engine(vllm_config: Any) -> None:
        """Raises UnsupportedEngine for what is not built yet: pipeline stages, and graphs that are recorded once."""
        check_ranks(vllm_config.parallel_config.pipeline_parallel_size)
        compilation = vllm_config.compilation_config
        for what, mode in (("compilation", compilation.mode), ("CUDA graphs", compilation.cudagraph_mode)):
            if mode is not None and mode.name != "NONE":
                raise UnsupportedEngine(
                    f"{what} {mode.name} found, expected NONE: tokens are grouped in Python at every step; "
                    "start with enforce_eager"
                )


def room_for(num_experts: int) -> int:
    """Experts that a generation may have under an engine that starts with this many: there is room to learn more."""
    return min(MAX_EXPERTS, max(MIN_EXPERTS, 2 << max(0, num_experts - 1).bit_length()))


def seta_engine_args(manifest: Manifest, bank: Path, max_generations: int) -> dict[str, Any]:
    """Keyword arguments for vLLM's `AsyncEngineArgs` that make its LoRA slots hold generations of `bank`."""
    config = RuntimeConfig(
        bank=bank.resolve(),
        trunk_layers=manifest.trunk_layers,
        targets=manifest.targets,
        block_size=manifest.block_size,
        max_experts=room_for(len(manifest.experts)),
    )
    return {
        "enable_lora": True,
        "max_loras": max_generations,
        "max_cpu_loras": max_generations,
        "max_lora_rank": 8,  # vLLM's own buffers are never made; ours have no bound on the rank
        "lora_target_modules": ["qkv_proj"],
        "additional_config": {KEY: config.model_dump(mode="json")},
        "worker_extension_cls": "seta_runtime.worker.SetaWorkerExtension",
    }
