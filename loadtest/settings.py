"""`Settings`: everything a load test can be told, checked when built.

The fields are the command line too: `loadtest.options` makes an option of each, so a name, a default and a help text
are written once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

Scenario = Literal["steady", "sweep", "hot-add", "soak", "overload"]
Arrivals = Literal["closed", "poisson", "burst", "ramp"]
Popularity = Literal["uniform", "skewed", "one"]
Api = Literal["chat", "completions"]
Milliseconds = Annotated[float | None, Field(gt=0)]

SOAK_SECONDS = 3600.0
STAGE_SECONDS = 30.0


def _numbers(value: Any) -> Any:
    """`1,2,4` as a tuple of numbers."""
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


def _span(value: Any) -> Any:
    """`8:64` as (8, 64), `32` as (32, 32)."""
    if not isinstance(value, str):
        return value
    low, _, high = value.partition(":")
    return (low, high or low)


Rates = Annotated[tuple[Annotated[float, Field(gt=0, le=1e6)], ...], BeforeValidator(_numbers)]
Counts = Annotated[tuple[Annotated[int, Field(ge=1, le=65536)], ...], BeforeValidator(_numbers)]
Numbers = Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_numbers)]
Span = Annotated[tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]], BeforeValidator(_span)]


class Settings(BaseModel):
    """One load test. Rates are requests a second, spans are inclusive."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scenario: Annotated[Scenario, Field(description="steady, sweep, hot-add, soak or overload.")]
    url: Annotated[str, Field(description="The server, without /v1.")] = "http://127.0.0.1:8000"
    model: Annotated[str | None, Field(description="Model name; the server's first if not given.")] = None
    api: Annotated[Api, Field(description="chat or completions.")] = "chat"
    workload: Annotated[
        tuple[Path, ...], Field(description='JSON lines {"task", "prompt" | "messages", "answer"?}; may be repeated.')
    ] = (Path("demo/examples.jsonl"),)
    popularity: Annotated[Popularity, Field(description="How tasks mix: uniform, skewed (Zipf) or one.")] = "uniform"
    skew: Annotated[float, Field(gt=0, le=10, description="Zipf exponent of skewed, tasks in file order.")] = 1.0
    task: Annotated[str | None, Field(description="The task of --popularity one.")] = None
    max_tokens: Annotated[Span, Field(description="Answer tokens at most: N, or LOW:HIGH drawn per request.")] = (
        32,
        32,
    )
    padding_words: Annotated[
        Span, Field(description="Random words put before each prompt: N or LOW:HIGH; no prefix-cache hits then.")
    ] = (0, 0)
    extra_body: Annotated[dict[str, Any], Field(description='JSON merged into each request: {"ignore_eos": true}.')] = (
        Field(default_factory=dict)
    )

    arrivals: Annotated[
        Arrivals | None, Field(description="closed, poisson, burst or ramp; poisson if --rate is given, else closed.")
    ] = None
    rate: Annotated[Rates, Field(description="Requests a second; a list (1,2,4) for sweep.")] = ()
    concurrency: Annotated[Counts, Field(description="Clients of a closed loop; a list (1,2,4) for sweep.")] = (8,)
    burst_size: Annotated[int, Field(ge=1, le=65536, description="Requests at once in a burst.")] = 16
    ramp_from: Annotated[float, Field(ge=0, description="Rate at the start of a ramp.")] = 0.0
    seconds: Annotated[
        float | None, Field(gt=0, le=30 * 86400, description="Sending time of a stage (30; soak 3600).")
    ] = None
    requests: Annotated[int | None, Field(ge=1, description="At most this many requests a stage.")] = None
    warmup_seconds: Annotated[float, Field(ge=0, description="Start of each stage that is not counted.")] = 0.0
    overload_factor: Annotated[float, Field(gt=1, le=100, description="Overload: times the capacity.")] = 2.0

    admin_url: Annotated[str, Field(description="Hot-add: the server's admin listener.")] = "http://127.0.0.1:8001"
    generations: Annotated[Numbers, Field(description="Hot-add: generations to activate in turn (5 or 5,6).")] = ()
    activations: Annotated[int, Field(ge=1, le=10_000, description="Hot-add: activations and rollbacks in all.")] = 10

    ttft_limit_ms: Annotated[Milliseconds, Field(description="Goodput: time to the first token at most.")] = None
    itl_limit_ms: Annotated[Milliseconds, Field(description="Goodput: mean time between tokens at most.")] = None
    e2e_limit_ms: Annotated[Milliseconds, Field(description="Goodput: time to the answer's end at most.")] = None
    timeout_seconds: Annotated[float, Field(gt=0, le=86400, description="One request's time at most.")] = 300.0
    max_in_flight: Annotated[int, Field(ge=1, le=65536, description="Open requests at most; later ones wait.")] = 1024
    seed: Annotated[int, Field(ge=0, description="Of arrivals, tasks and lengths.")] = 0

    @property
    def stage_seconds(self) -> float:
        return self.seconds or (SOAK_SECONDS if self.scenario == "soak" else STAGE_SECONDS)

    @property
    def has_limits(self) -> bool:
        return any((self.ttft_limit_ms, self.itl_limit_ms, self.e2e_limit_ms))

    @field_validator("url", "admin_url")
    @classmethod
    def _address(cls, value: str) -> str:
        url = urlsplit(value)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError(f"{value!r} is no address; expected http://HOST:PORT")
        if url.username or url.password:
            raise ValueError("a key does not belong in an address; give it in the environment or in a file")
        return value.rstrip("/").removesuffix("/v1").removesuffix("/admin")

    @field_validator("extra_body", mode="before")
    @classmethod
    def _json_object(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from error

    @field_validator("max_tokens", "padding_words")
    @classmethod
    def _ordered(cls, span: tuple[int, int]) -> tuple[int, int]:
        if span[0] > span[1]:
            raise ValueError(f"{span[0]}:{span[1]} is empty; expected LOW:HIGH")
        return span

    @model_validator(mode="after")
    def _fits_together(self) -> Settings:
        if (self.popularity == "one") != (self.task is not None):
            raise ValueError("--popularity one and --task NAME go together")
        if self.max_tokens[0] < 1:
            raise ValueError("--max-tokens must be at least 1")
        if self.arrivals == "closed" and self.rate:
            raise ValueError("a closed loop sends when an answer has come, not at a --rate")
        if self.scenario != "sweep" and (len(self.rate) > 1 or len(self.concurrency) > 1):
            raise ValueError("only a sweep takes several values of --rate or --concurrency")
        if self.arrivals not in (None, "closed") and not self.rate and self.scenario not in ("sweep", "overload"):
            raise ValueError(f"--arrivals {self.arrivals} needs a --rate")
        if (self.scenario == "hot-add") != bool(self.generations):
            raise ValueError("--scenario hot-add and --generations go together")
        return self
