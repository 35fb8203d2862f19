"""Progress that is always visible: `[2/5] text`, then a line that ticks with the seconds until the step is done.

On a terminal the line is rewritten in place; elsewhere (CI, a pipe) a new line is printed now and then.
"""

import shutil
import sys
import time

QUIET_SECONDS = 15.0


class Progress:
    """The steps of one run."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._number = 0
        self._is_terminal = sys.stdout.isatty()
        self._start = self._said = time.monotonic()
        self._title = ""

    def step(self, title: str) -> None:
        self._number += 1
        self._title = f"[{self._number}/{self._steps}] {title}"
        self._start = self._said = time.monotonic()
        self._write(self._title, is_final=not self._is_terminal)

    def tick(self, detail: str) -> None:
        """Call often; it prints no more than a reader wants."""
        now = time.monotonic()
        if self._is_terminal or now - self._said >= QUIET_SECONDS:
            self._said = now
            self._write(f"{self._title}: {detail} ({now - self._start:.0f} s)", is_final=not self._is_terminal)

    def done(self, result: str = "done") -> None:
        self._write(f"{self._title}: {result} ({time.monotonic() - self._start:.0f} s)", is_final=True)

    def _write(self, line: str, *, is_final: bool) -> None:
        if self._is_terminal:
            width = shutil.get_terminal_size().columns - 1
            print("\r\033[K" + (line if is_final else line[:width]), end="\n" if is_final else "", flush=True)
        else:
            print(line, flush=True)
