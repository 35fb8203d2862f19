"""Building vLLM's engine from a `ServeConfig`.

`start_engine` blocks for as long as the model loads (seconds to minutes), so it runs in a thread of its own while the
event loop answers health checks. It returns vLLM's `AsyncLLM`, whose engine core is another process.
"""

import difflib
import json
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from seta_runtime.config import RuntimeConfig, UnsupportedEngine
from seta_runtime.engine_args import seta_engine_args

from . import environment
from .config import ServeConfig, ServeError
from .memory import GIB, available_bytes, default_kv_cache_gib
from .preflight import Plan

if TYPE_CHECKING:
    from vllm.engine.arg_utils import AsyncEngineArgs

    from .counting import CountingEngine

_OPTIONAL = ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "gpu_memory_utilization", "reasoning_parser")
# Engine arguments with an option of their own, or that the design decides.
_OWN = {
    "model": "--model",
    "served_model_name": "--name",
    "seed": "--seed",
    "dtype": "--dtype",
    "enable_prefix_caching": "--enable-prefix-caching",
    "enforce_eager": "--enforce-eager",
    "tensor_parallel_size": "--tensor-parallel-size",
    "data_parallel_size": "--data-parallel-size",
    "pipeline_parallel_size": "--pipeline-parallel-size",
    "kv_cache_memory_bytes": "--kv-cache-gib",
    "log_level": "--log-level",
} | {name: "--" + name.replace("_", "-") for name in _OPTIONAL}
_FIXED = ("enable_log_requests", "disable_log_stats", "runner", "convert", "enable_sleep_mode")
_FIXED_PARTS = ("lora", "data_parallel")  # replicas on other machines, or behind another balancer, would not be told


def start_engine(config: ServeConfig, plan: Plan) -> "CountingEngine":
    """A running engine without any generation yet. Blocks. Raises: ServeError."""
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext

    from .counting import CountingEngine

    args = engine_args(config, plan)
    if current_platform.is_cpu():
        environment.bind_ranks(config.tensor_parallel_size, config.data_parallel_size)
        if args.enforce_eager:
            environment.disable_compiler()
    try:
        vllm_config = args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
        RuntimeConfig.check_engine(vllm_config)
    except ValidationError as error:
        raise ServeError(f"vLLM refuses the configuration: {_first_message(error)}") from error
    except (UnsupportedEngine, ValueError, NotImplementedError, OSError) as error:
        raise ServeError(f"the engine cannot run like this: {_first_line(error)}") from error
    return CountingEngine.from_vllm_config(vllm_config, usage_context=UsageContext.OPENAI_API_SERVER)


def engine_args(config: ServeConfig, plan: Plan) -> "AsyncEngineArgs":
    """Every engine argument in one place: ours, then the user's others, then those the runtime cannot do without."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform

    slots = config.max_generations + 1  # one to load into before another leaves
    runtime = seta_engine_args(plan.manifest, plan.bank.root, slots)
    ours: dict[str, Any] = {name: value for name in _OPTIONAL if (value := getattr(config, name)) is not None}
    ours |= {
        "model": str(plan.model_dir),
        "served_model_name": [config.name],  # vLLM would use the path, and show it in its metrics
        "seed": config.seed,
        "dtype": config.dtype,
        "enable_prefix_caching": config.enable_prefix_caching,
        "tensor_parallel_size": config.tensor_parallel_size,
        "data_parallel_size": config.data_parallel_size,
        "enforce_eager": config.enforce_eager,
    }
    if (kv_cache_gib := _kv_cache_gib(config, current_platform.is_cpu())) is not None:
        ours["kv_cache_memory_bytes"] = int(kv_cache_gib * GIB)
    return AsyncEngineArgs(**(ours | parse_engine_args(config.engine_arg, reserved=set(runtime)) | runtime))


def _kv_cache_gib(config: ServeConfig, is_cpu: bool) -> float | None:
    from_environment = environment.kv_cache_gib()
    if config.kv_cache_gib is not None or not is_cpu:
        return config.kv_cache_gib
    return from_environment or default_kv_cache_gib(available_bytes() // config.data_parallel_size)


def parse_engine_args(pairs: tuple[str, ...], reserved: set[str]) -> dict[str, Any]:
    """`KEY=VALUE` strings through vLLM's own command-line parser, so vLLM judges types and choices.

    Raises: ServeError for an unknown key, one that is not the user's to set, or a value vLLM does not accept.
    """
    import dataclasses

    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    if not pairs:
        return {}
    given = {key.replace("-", "_"): value for key, _, value in (pair.partition("=") for pair in pairs)}
    known = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    for key in given:
        _check_key(key, known, reserved)
    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser(add_help=False, allow_abbrev=False))
    parser.error = _refuse
    actions = {action.dest: action for action in parser._actions}
    parsed = vars(parser.parse_args([word for key, value in given.items() for word in _words(actions, key, value)]))
    return {key: parsed[key] for key in given}


def _check_key(key: str, known: set[str], reserved: set[str]) -> None:
    if key in _OWN:
        raise ServeError(f"--engine-arg {key}: use {_OWN[key]}")
    if key in reserved or key in _FIXED or any(part in key for part in _FIXED_PARTS):
        raise ServeError(f"--engine-arg {key}: this server sets it itself")
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ServeError(f"--engine-arg {key}: vLLM has no such engine argument{hint}")


def _words(actions: dict[str, Any], key: str, value: str) -> list[str]:
    """One pair as command-line words: a switch for a boolean, several words for a JSON list."""
    if key not in actions:
        raise ServeError(f"--engine-arg {key}: cannot be set from the command line")
    option = actions[key].option_strings[0]
    if actions[key].nargs == 0:
        if value.lower() not in ("true", "false"):
            raise ServeError(f"--engine-arg {key}: {value!r} is not true or false")
        return [option if value.lower() == "true" else option.replace("--", "--no-", 1)]
    if actions[key].nargs in ("+", "*") and value.startswith("["):
        return [option, *map(str, json.loads(value))]
    return [f"{option}={value}"]


def _refuse(message: str) -> None:
    raise ServeError(f"--engine-arg: {message}")


def _first_message(error: ValidationError) -> str:
    return error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
