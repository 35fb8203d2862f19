"""What a person sees while a test runs: one live line per stage on a terminal, a line now and then in a log file."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from .recorder import Recorder
from .stages import Stage
from .statistics import Histogram

REFRESH_SECONDS = 0.25
LOG_EVERY_SECONDS = 20.0


class Watch:
    """Shows the stage that runs. Nothing but its own lines goes to stderr; stdout is left to the results."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)

    def say(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def stage(self, stage: Stage, recorder: Recorder) -> Iterator[None]:
        """Watch a stage for as long as the block lasts."""
        watching = asyncio.create_task(self._watch(stage, recorder))
        try:
            yield
        finally:
            watching.cancel()
            self.say(f"{stage.name}: {facts(recorder)}")

    async def _watch(self, stage: Stage, recorder: Recorder) -> None:
        if not self.console.is_terminal:
            while True:
                await asyncio.sleep(LOG_EVERY_SECONDS)
                self.say(f"{stage.name}: {_clock(stage, recorder)}, {facts(recorder)}")
        columns = TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.fields[facts]}")
        with Progress(*columns, console=self.console, transient=True, auto_refresh=False) as bar:
            row = bar.add_task(f"{stage.name} ({stage.load})", total=1.0, facts="")
            while True:
                shown = f"{_clock(stage, recorder)}, {facts(recorder)}"
                bar.update(row, completed=_share_done(stage, recorder), facts=shown, refresh=True)
                await asyncio.sleep(REFRESH_SECONDS)


def facts(recorder: Recorder) -> str:
    """The stage so far, in one line."""
    total, seconds = recorder.total, recorder.seconds
    speed = f"{total.output_tokens / seconds:.0f} tokens/s" if seconds else "no tokens yet"
    counts = f"{total.completed} done, {total.failed} failed, {recorder.in_flight} in flight"
    return f"{counts}, {speed}, TTFT {_two(total.ttft)}, ITL {_two(total.itl)}"


def _two(histogram: Histogram) -> str:
    if not histogram.count:
        return "-"
    return f"{1000 * histogram.quantile(0.5):.0f}/{1000 * histogram.quantile(0.99):.0f} ms"


def _share_done(stage: Stage, recorder: Recorder) -> float:
    """0 to 1, of the time or of the requests, whichever ends the stage first."""
    by_time = (time.perf_counter() - recorder.start) / stage.seconds
    by_count = recorder.total.sent / stage.requests if stage.requests else 0.0
    return min(max(by_time, by_count), 1.0)


def _clock(stage: Stage, recorder: Recorder) -> str:
    passed = time.perf_counter() - recorder.start
    return f"{passed:.0f}/{stage.seconds:.0f} s" if passed < stage.seconds else "waiting for the last answers"
