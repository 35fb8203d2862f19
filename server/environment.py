"""The one place that reads and writes environment variables.

vLLM takes many of its settings from the environment, and so do the processes it starts. `prepare` gives each a value
that suits a server, before vLLM is imported; a value the user has set wins, except where it would open a hole.
"""

import os
from pathlib import Path

from .config import ServeConfig, ServeError

_DEFAULTS = {
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a fork would inherit our threads and listening socket
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_COLOR": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
_REFUSED = (
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING",  # lets a client's model name become a path
    "VLLM_SKIP_MODEL_NAME_VALIDATION",
    "VLLM_SERVER_DEV_MODE",
    "VLLM_DISABLE_REQUEST_ID_RANDOMIZATION",  # two clients' requests with one id would disturb each other
)
_PLUGIN = "seta"
_BINDING = "VLLM_CPU_OMP_THREADS_BIND"
_KV_SPACE = "VLLM_CPU_KVCACHE_SPACE"


def prepare(config: ServeConfig) -> None:
    """Set what vLLM will read. Call before vLLM is imported. Raises: ServeError."""
    refused = [name for name in _REFUSED if os.environ.get(name, "0") not in ("", "0", "False", "false")]
    if refused:
        raise ServeError(f"the environment sets {refused[0]}, which this server does not allow; unset it")
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    os.environ["VLLM_MAX_N_SEQUENCES"] = str(config.max_n)
    os.environ["VLLM_LOGGING_LEVEL"] = "INFO" if config.log_level == "debug" else "WARNING"
    _allow_plugin()


def take(name: str) -> str | None:
    """A variable of ours, taken out of the environment so that no other process inherits it; None if not set."""
    return os.environ.pop(name, None)


def disable_compiler() -> None:
    """For an eager engine on a CPU: no `torch.compile` anywhere in its processes.

    vLLM compiles a few small functions on first use even when eager, the one behind `logprobs` for instance; the first
    such request would run a C++ compiler for a minute, and everybody's requests would wait for it.
    """
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")


def bind_ranks(tensor_parallel_size: int, data_parallel_size: int = 1) -> None:
    """On a CPU: cores for each rank of each replica, where the user has not named them.

    vLLM by itself wants a NUMA node for each. With fewer nodes the cores are divided evenly, neighbours together.
    Raises: ServeError if there are fewer cores than ranks.
    """
    num_ranks = tensor_parallel_size * data_parallel_size
    if num_ranks == 1 or os.environ.get(_BINDING, "auto") != "auto" or _num_numa_nodes() >= num_ranks:
        return
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < num_ranks:
        raise ServeError(
            f"{num_ranks} workers found (tensor parallelism {tensor_parallel_size}, data parallelism "
            f"{data_parallel_size}), this process may use {len(cores)} cores; give it more, or fewer workers"
        )
    each = len(cores) // num_ranks
    shares = [cores[rank * each : (rank + 1) * each] for rank in range(num_ranks)]
    os.environ[_BINDING] = "|".join(",".join(map(str, share)) for share in shares)


def _num_numa_nodes() -> int:
    return len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) or 1


def kv_cache_gib() -> float | None:
    """vLLM's own variable for the CPU's KV cache, taken out of the environment: the engine's argument replaces it."""
    text = os.environ.pop(_KV_SPACE, "").strip()
    if not text:
        return None
    try:
        size = float(text)
    except ValueError:
        raise ServeError(f"{_KV_SPACE} is {text!r}, expected a number of GiB") from None
    return size if size > 0 else None


def _allow_plugin() -> None:
    """`VLLM_PLUGINS`, where set, is vLLM's list of the only plugins it loads."""
    plugins = os.environ.get("VLLM_PLUGINS")
    if plugins is not None and _PLUGIN not in plugins.split(","):
        os.environ["VLLM_PLUGINS"] = ",".join([*filter(None, plugins.split(",")), _PLUGIN])
