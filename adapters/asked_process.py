"""A module that runs as a process and answers: a question is a line of JSON on its standard input, its answer a marked
line on its standard output. Libraries may print there what they like."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

MARK = "answer "


class ProcessEnded(RuntimeError):
    """It ended by itself: with what `code`, and the lines of its standard error."""

    def __init__(self, code: int, lines: list[str]) -> None:
        super().__init__(f"ended with code {code}")
        self.code, self.lines = code, lines


class AskedProcess:
    """`log`: where its standard error goes."""

    def __init__(self, module: str, log: Path) -> None:
        self.log = log
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Blocks until it has answered. Raises ProcessEnded."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
        raise ProcessEnded(self.process.wait(), self.log.read_text(errors="replace").strip().splitlines())

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def answer(values: dict[str, Any]) -> None:
    """What the module calls."""
    print(MARK + json.dumps(values), flush=True)
