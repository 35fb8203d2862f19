"""What was seen of one request."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Outcome:
    """One request. Times are seconds of `time.perf_counter`; `gaps` lie between one piece of output and the next.

    `due` is when it should have been sent, `sent` when it was; latencies count from `due`. `error` is a kind
    ("http 429", "timeout"), `detail` what the server or the socket said.
    """

    task: str
    due: float
    sent: float
    end: float = 0.0
    first: float | None = None
    gaps: list[float] = field(default_factory=list)
    generation: str | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    text: str = ""
    is_right: bool | None = None
    error: str | None = None
    detail: str = ""

    @property
    def last(self) -> float:
        """When the last piece of output came."""
        return (self.first or self.end) + sum(self.gaps)
