"""Which prompts are sent: task files in, an endless mixed stream of requests out.

A workload file is JSON lines, `{"task", "prompt" | "messages", "answer"?}`. Tasks are drawn by popularity; within a
task every row is used once, in random order, before any is used again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import LoadTestError
from .settings import Popularity, Settings

MAX_FILE_BYTES = 1 << 30
PADDING = ("river", "stone", "paper", "winter", "garden", "window", "letter", "market", "silver", "forest", "bridge")
# Common words, none of them any task's; eleven of them in random order make a start that no cache has seen.


class Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    role: str
    content: str


class Row(BaseModel):
    """One line of a workload file; `answer` is what a right answer would be, if that is known."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    task: str = Field(min_length=1, max_length=64)
    prompt: str | None = Field(default=None, min_length=1)
    messages: tuple[Message, ...] | None = Field(default=None, min_length=1)
    answer: str | None = None

    @model_validator(mode="after")
    def _one_input(self) -> Row:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give exactly one of 'prompt' and 'messages'")
        return self

    def chat(self) -> list[dict[str, str]]:
        if self.messages is not None:
            return [message.model_dump() for message in self.messages]
        return [{"role": "user", "content": self.prompt or ""}]


@dataclass(frozen=True, slots=True)
class Request:
    """What one request says, whichever API carries it."""

    task: str
    messages: list[dict[str, str]]
    max_tokens: int
    answer: str | None = None


def read_rows(paths: Sequence[Path], limit: int | None = None) -> list[Row]:
    """The rows of all files, of each the first `limit` (None: all). Raises LoadTestError with file and line."""
    rows = [_parse(path, number, line) for path in paths for number, line in _lines(path)[:limit]]
    if not rows:
        raise LoadTestError(f"{', '.join(map(str, paths))}: no rows; expected one JSON object a line")
    return rows


def in_order(rows: Sequence[Row], max_tokens: int) -> Iterator[Request]:
    """Every row once."""
    return (Request(row.task, row.chat(), max_tokens, row.answer) for row in rows)


def mixed(rows: Sequence[Row], settings: Settings, seed: int) -> Iterator[Request]:
    """An endless stream of requests; the same seed gives the same stream."""
    rng = random.Random(seed)
    tasks = by_task(rows)
    weights = shares(list(tasks), settings.popularity, settings.skew, settings.task)
    decks: dict[str, list[Row]] = {task: [] for task in weights}
    while True:
        (task,) = rng.choices(list(weights), list(weights.values()))
        if not decks[task]:
            decks[task] = rng.sample(tasks[task], len(tasks[task]))
        row = decks[task].pop()
        messages = _padded(row.chat(), rng.randint(*settings.padding_words), rng)
        yield Request(task, messages, rng.randint(*settings.max_tokens), row.answer)


def by_task(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each task, tasks in the order in which they first appear."""
    tasks: dict[str, list[Row]] = {}
    for row in rows:
        tasks.setdefault(row.task, []).append(row)
    return tasks


def shares(tasks: Sequence[str], popularity: Popularity, skew: float, one: str | None) -> Mapping[str, float]:
    """The part of the requests that each task gets; `skewed` is Zipf's law, rank r gets a share like r^-skew."""
    if popularity == "one":
        if one is None or one not in tasks:
            raise LoadTestError(f"--task {one}: the workload has {', '.join(tasks)}")
        return {one: 1.0}
    raw = [1.0 if popularity == "uniform" else rank**-skew for rank in range(1, len(tasks) + 1)]
    return {task: weight / sum(raw) for task, weight in zip(tasks, raw, strict=True)}


def _padded(messages: list[dict[str, str]], words: int, rng: random.Random) -> list[dict[str, str]]:
    if not words:
        return messages
    last = messages[-1]
    padding = " ".join(rng.choice(PADDING) for _ in range(words))
    return [*messages[:-1], last | {"content": f"{padding}\n{last['content']}"}]


def _lines(path: Path) -> list[tuple[int, str]]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise LoadTestError(f"{path}: over {MAX_FILE_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise LoadTestError(f"{path}: cannot be read ({error.strerror}); --workload names the file") from error
    except UnicodeDecodeError as error:
        raise LoadTestError(f"{path}: not UTF-8 at byte {error.start}") from error
    return [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _parse(path: Path, number: int, line: str) -> Row:
    try:
        return Row.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "line"
        raise LoadTestError(f"{path}:{number}: {where}: {first['msg'].removeprefix('Value error, ')}") from error
