"""An engine's process as the benchmark sees it: one question, one answer, and silence between them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from seta_runtime.bench.points import Point
from seta_runtime.bench.slices import Slice
from seta_runtime.bench.variants import Variant
from seta_runtime.bench.worker import ANSWER

LOG_LINES = 20


class EngineProcess:
    """Starts the engine and waits until it is ready. `log`: where its standard error goes.

    Raises RuntimeError with the log's last lines when the process ends by itself.
    """

    def __init__(self, variant: Variant, prompts: list[list[int]], log: Path) -> None:
        self.variant = variant
        self.log = log
        command = [sys.executable, "-m", "seta_runtime.bench.worker"]
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self.ready = self._ask({"variant": variant.to_json(), "prompts": prompts})

    @property
    def name(self) -> str:
        return self.variant.name

    def begin(self, point: Point, number: int) -> None:
        """Have the point's batch `number` running, every request past its first token."""
        self._ask({"do": "begin", "point": point.__dict__, "number": number})

    def slice(self, steps: int) -> Slice:
        """Advance the batch by so many steps."""
        return Slice(**self._ask({"do": "slice", "steps": steps}))

    def state(self) -> dict[str, Any]:
        """Memory, tokens seen by the router, and the share of its waiting time in which the process used a core."""
        return self._ask({"do": "end"})

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith(ANSWER):
                return json.loads(line.removeprefix(ANSWER))
        last = self.log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        raise RuntimeError("\n".join([f"engine {self.variant.name} ended with {self.process.wait()}:", *last]))
