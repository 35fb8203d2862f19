"""Progress that a person can follow on a terminal, and that does not flood a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

T = TypeVar("T")

console = Console(stderr=True)
stdout = Console()
LOG_EVERY_SECONDS = 20.0


class Steps:
    """A bar with a message (loss, tokens/s) and the time left; plain lines now and then where there is no terminal.

    `before`: what an earlier process did of it, which says nothing about how long the rest will take.
    """

    def __init__(self, what: str, total: int, unit: str, before: int = 0) -> None:
        self.what, self.total, self.unit, self.before = what, total, unit, before
        self.done, self.started, self.printed = before, time.monotonic(), 0.0
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[message]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Steps:
        self.bar.start()
        self.row = self.bar.add_task(self.what, total=self.total, completed=self.before, message="")
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
        seconds = time.monotonic() - self.started
        before = f", {self.before} of them before" if self.before else ""
        console.print(f"{self.what}: {self.done}/{self.total} {self.unit} in {seconds:.1f} s{before}", highlight=False)

    def advance(self, message: str = "") -> None:
        self.done += 1
        self.bar.update(self.row, advance=1, message=message)
        now = time.monotonic()
        if not console.is_terminal and not console.quiet and now - max(self.printed, self.started) > LOG_EVERY_SECONDS:
            self.printed = now
            left = self.seconds_left()
            said = ", ".join(filter(None, (f"{self.done}/{self.total} {self.unit}", message, f"{left:.0f} s left")))
            print(f"{self.what}: {said}", file=sys.stderr, flush=True)

    def seconds_left(self) -> float:
        """At the pace of this process."""
        pace = (time.monotonic() - self.started) / (self.done - self.before)
        return pace * (self.total - self.done)


def track(items: Iterable[T], what: str, unit: str) -> Iterator[T]:
    """Iterate with a bar."""
    listed = list(items)
    with Steps(what, len(listed), unit) as steps:
        for item in listed:
            yield item
            steps.advance()
