"""`ServeConfig`: everything `seta serve` can be told, checked when built.

The fields are the command line too: `server.cli` makes an option of each, so a name, a default and a help text are
written once. What needs the bank, the model or vLLM to be judged is checked in `server.preflight`.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
BASE_SUFFIX = "-base"
LogLevel = Literal["debug", "info", "warning", "error"]


class ServeError(Exception):
    """The server cannot start or go on; the message is one sentence for the person at the terminal."""


class ServeConfig(BaseModel):
    """The settings of one server process."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Annotated[str, Field(min_length=1, description="Base model: a directory, or a Hugging Face Hub id.")]
    bank: Annotated[Path, Field(description="The expert bank; its current generation is served.")]
    name: Annotated[str, Field(description="Public model name; from --model if not given.")]
    host: Annotated[str, Field(min_length=1, description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535, description="Port to listen on.")] = 8000
    admin_host: Annotated[str, Field(min_length=1, description="Address of the admin API.")] = "127.0.0.1"
    admin_port: Annotated[
        int | None, Field(ge=0, le=65535, description="Port of the admin API; --port plus 1 if not given, 0 for none.")
    ] = None
    max_upload_mib: Annotated[float, Field(gt=0, description="Largest uploaded archive of a generation, MiB.")] = 4096.0
    max_generations: Annotated[
        int,
        Field(ge=2, le=64, description="Generations held in memory; old ones finish their requests beside new ones."),
    ] = 4
    shutdown_seconds: Annotated[int, Field(ge=0, le=3600, description="Time running requests get to finish.")] = 10
    log_level: Annotated[LogLevel, Field(description="debug also shows the engine's own log and tracebacks.")] = "info"

    api_keys_file: Annotated[
        Path | None, Field(description="Clients' keys, as `seta keys new` prints them; read again when it changes.")
    ] = None
    admin_keys_file: Annotated[Path | None, Field(description="The administrators' keys, in the same form.")] = None
    open_metrics: Annotated[bool, Field(description="/metrics needs no key.")] = False
    allow_origin: Annotated[
        tuple[str, ...], Field(description="Origin whose web pages may use this server (CORS); may be repeated.")
    ] = ()

    max_body_mib: Annotated[float, Field(gt=0, le=1024, description="Largest request body, MiB.")] = 4.0
    max_prompt_tokens: Annotated[
        int | None, Field(ge=1, description="Longest prompt, tokens; the context length if not given.")
    ] = None
    max_tokens: Annotated[
        int | None, Field(ge=1, description="Longest answer, tokens; the context length if not given.")
    ] = None
    max_n: Annotated[int, Field(ge=1, description="Answers one request may ask for: n times its prompts.")] = 128
    max_running: Annotated[
        int | None,
        Field(ge=1, description="Answers generated at once; by default what the engine batches, and a quarter."),
    ] = None
    max_running_per_key: Annotated[int | None, Field(ge=1, description="The same for each API key.")] = None
    max_queued: Annotated[int, Field(ge=1, description="Requests waiting or being sent; more get a 429.")] = 1024
    max_queued_per_key: Annotated[int, Field(ge=1, description="The same for each API key.")] = 256
    max_connections: Annotated[int, Field(ge=1, description="Connections held open at once.")] = 4096
    client_seconds: Annotated[
        float, Field(gt=0, description="Patience with a client that does not send, or does not read, seconds.")
    ] = 60.0

    max_model_len: Annotated[int | None, Field(ge=1, description="Context length, tokens.")] = None
    dtype: Annotated[
        Literal["auto", "bfloat16", "float16", "float32"], Field(description="Weights and activations.")
    ] = "auto"
    max_num_seqs: Annotated[int | None, Field(ge=1, description="Sequences in one batch at most.")] = None
    max_num_batched_tokens: Annotated[int | None, Field(ge=1, description="Tokens in one step at most.")] = None
    enable_prefix_caching: Annotated[bool, Field(description="Reuse the KV cache of equal prompt starts.")] = True
    enforce_eager: Annotated[bool, Field(description="Do not compile; the routed layer needs it so far.")] = True
    tensor_parallel_size: Annotated[int, Field(ge=1, description="Workers that share each layer.")] = 1
    data_parallel_size: Annotated[int, Field(ge=1, description="Whole engines that share the requests.")] = 1
    pipeline_parallel_size: Annotated[int, Field(ge=1, description="Only 1 is supported.")] = 1
    gpu_memory_utilization: Annotated[float | None, Field(gt=0, le=1, description="Share of the GPU's memory.")] = None
    kv_cache_gib: Annotated[
        float | None, Field(gt=0, description="KV cache of an engine, GiB; on a CPU a default is chosen.")
    ] = None
    seed: Annotated[int, Field(ge=0, lt=1 << 32, description="Seed for sampling without a seed of its own.")] = 0
    chat_template: Annotated[Path | None, Field(description="A Jinja file instead of the model's template.")] = None
    tool_call_parser: Annotated[str | None, Field(description="vLLM's name of the model's tool-call format.")] = None
    enable_auto_tool_choice: Annotated[bool, Field(description='Allow tool_choice "auto".')] = False
    reasoning_parser: Annotated[str | None, Field(description="vLLM's name of the reasoning format.")] = None
    engine_arg: Annotated[
        tuple[str, ...], Field(description="KEY=VALUE for any other vLLM engine argument; may be repeated.")
    ] = ()

    @property
    def base_name(self) -> str:
        """The public name of the plain base model."""
        return self.name + BASE_SUFFIX

    @property
    def admin_address(self) -> tuple[str, int] | None:
        """Host and port of the admin listener; None if there is none."""
        if self.admin_port == 0:
            return None
        return self.admin_host, min(self.port + 1, 65535) if self.admin_port is None else self.admin_port

    @property
    def max_upload_bytes(self) -> int:
        return int(self.max_upload_mib * (1 << 20))

    @property
    def max_body_bytes(self) -> int:
        return int(self.max_body_mib * (1 << 20))

    @model_validator(mode="before")
    @classmethod
    def _name_from_model(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("name") and isinstance(values.get("model"), str):
            return values | {"name": Path(values["model"]).resolve().name if values["model"] else ""}
        return values

    @field_validator("name")
    @classmethod
    def _name_is_usable(cls, name: str) -> str:
        if not NAME.fullmatch(name) or name.endswith(BASE_SUFFIX):
            raise ValueError(
                f"{name!r} cannot be a model name; choose letters, digits, '.', '_' and '-', at most 96, "
                f"not ending in '{BASE_SUFFIX}' ('@' and '{BASE_SUFFIX}' mark generations and the base model)"
            )
        return name

    @field_validator("bank")
    @classmethod
    def _bank_is_a_directory(cls, bank: Path) -> Path:
        if not bank.is_dir():
            raise ValueError(f"there is no directory {str(bank)!r}; learn a task first: seta learn --bank {bank} ...")
        return bank.resolve()

    @field_validator("chat_template")
    @classmethod
    def _template_is_a_file(cls, path: Path | None) -> Path | None:
        if path is not None and not path.is_file():
            raise ValueError(f"there is no file {str(path)!r}")
        return path

    @field_validator("pipeline_parallel_size")
    @classmethod
    def _no_pipeline(cls, size: int) -> int:
        if size > 1:
            raise ValueError(
                "pipeline parallelism is not supported, the gate's decision would have to travel between stages; "
                "use --tensor-parallel-size or --data-parallel-size"
            )
        return size

    @field_validator("engine_arg")
    @classmethod
    def _engine_args_are_pairs(cls, pairs: tuple[str, ...]) -> tuple[str, ...]:
        for pair in pairs:
            key, equals, value = pair.partition("=")
            if not (equals and value and re.fullmatch(r"[a-z][a-z0-9_-]*", key)):
                raise ValueError(f"{pair!r} is not KEY=VALUE, for example max_logprobs=50")
        return pairs

    @field_validator("allow_origin")
    @classmethod
    def _origins_are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s*]+", origin):
                raise ValueError(f"{origin!r} is not an origin, for example https://app.example.com, nor '*'")
        return origins

    @model_validator(mode="after")
    def _tools_are_complete(self) -> "ServeConfig":
        if self.enable_auto_tool_choice and self.tool_call_parser is None:
            raise ValueError("--enable-auto-tool-choice needs --tool-call-parser")
        return self


def build_config(**values: Any) -> ServeConfig:
    """A `ServeConfig`. Raises: ServeError with every bad option in one sentence."""
    try:
        return ServeConfig(**values)
    except ValidationError as error:
        raise ServeError(explain(error)) from None


def explain(error: ValidationError) -> str:
    """The first errors of a pydantic validation, each as `--option: what is wrong`."""
    errors = error.errors(include_url=False, include_input=False, include_context=False)
    return "; ".join(_explain_one(one) for one in errors[:3])


def _explain_one(one: Any) -> str:
    message = one["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    option = str(one["loc"][0]).replace("_", "-") if one["loc"] else ""
    return f"--{option}: {message}" if option else message
