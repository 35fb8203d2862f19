"""A stage: a stretch of time with one kind of load. A scenario is a list of stages."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

from .settings import Arrivals, Settings


class Stage(BaseModel):
    """Sends for `seconds` or until `requests` were sent; rate in requests a second, `concurrency` clients if closed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    arrivals: Arrivals
    rate: float | None = None
    concurrency: int | None = None
    burst_size: int = 1
    ramp_from: float = 0.0
    seconds: float = Field(gt=0)
    requests: int | None = None
    warmup_seconds: float = 0.0
    activations: int = 0

    @property
    def load(self) -> str:
        """The load in words, for tables."""
        if self.arrivals == "closed":
            return f"{self.concurrency} clients"
        shape = {"poisson": "", "burst": f", bursts of {self.burst_size}", "ramp": f", ramp from {self.ramp_from:g}"}
        return f"{self.rate:.4g}/s{shape[self.arrivals]}"

    @classmethod
    def closed(cls, name: str, settings: Settings, concurrency: int) -> Self:
        return cls(name=name, arrivals="closed", concurrency=concurrency, **_common(settings))

    @classmethod
    def open(cls, name: str, settings: Settings, rate: float) -> Self:
        arrivals = settings.arrivals if settings.arrivals not in (None, "closed") else "poisson"
        shape: dict[str, Any] = {"burst_size": settings.burst_size, "ramp_from": settings.ramp_from}
        return cls(name=name, arrivals=arrivals, rate=rate, **shape, **_common(settings))

    def with_activations(self, count: int) -> Self:
        return self.model_copy(update={"activations": count})


def _common(settings: Settings) -> dict[str, Any]:
    return {
        "seconds": settings.stage_seconds,
        "requests": settings.requests,
        "warmup_seconds": settings.warmup_seconds,
    }
