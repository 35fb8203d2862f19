"""Outcomes as a client would have made them, without a server."""

from loadtest.outcome import Outcome
from loadtest.settings import Settings

SETTINGS = Settings(scenario="steady")


def completed(
    due: float = 0.0,
    ttft: float = 0.1,
    gaps: tuple[float, ...] = (0.02, 0.02),
    *,
    task: str = "foods",
    generation: str | None = "3",
    late: float = 0.0,
    is_right: bool | None = None,
) -> Outcome:
    """An answer with a piece of output at `ttft` and after each gap, one token a piece."""
    first = due + ttft
    return Outcome(
        task=task,
        due=due,
        sent=due + late,
        first=first,
        end=first + sum(gaps),
        gaps=list(gaps),
        generation=generation,
        prompt_tokens=5,
        output_tokens=1 + len(gaps),
        is_right=is_right,
    )


def failed(due: float = 0.0, kind: str = "http 429", *, task: str = "foods") -> Outcome:
    return Outcome(task=task, due=due, sent=due, end=due + 0.01, error=kind, detail="as said")
