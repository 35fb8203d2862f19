"""The engine arguments that turn vLLM's LoRA slots into generations of a bank."""

from seta_runtime.config import seta_engine_args

__all__ = ["seta_engine_args"]
