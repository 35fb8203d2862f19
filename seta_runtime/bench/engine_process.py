"""An engine's process as the benchmark sees it: one question, one answer, and silence between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adapters.asked_process import AskedProcess, ProcessEnded
from seta_runtime.bench.points import Point
from seta_runtime.bench.slices import Slice
from seta_runtime.bench.variants import Asks, Variant

LOG_LINES = 20


class EngineProcess(AskedProcess):
    """Starts the engine and waits until it is ready. `log`: where its standard error goes.

    Raises RuntimeError with the log's last lines when the process ends by itself.
    """

    def __init__(self, variant: Variant, prompts: list[list[int]], log: Path) -> None:
        self.variant = variant
        super().__init__("seta_runtime.bench.worker", log)
        self.ready = self._ask({"variant": variant.to_json(), "prompts": prompts})

    @property
    def name(self) -> str:
        return self.variant.name

    def begin(self, point: Point, number: int, asks: Asks | None = None) -> None:
        """Have the point's batch `number` running, every request past its first token.

        `asks`: what its requests name, and those of later batches; without it, what the last ones did.
        """
        self._ask({"do": "begin", "point": point.__dict__, "number": number, "asks": asks})

    def slice(self, steps: int) -> Slice:
        """Advance the batch by so many steps."""
        return Slice(**self._ask({"do": "slice", "steps": steps}))

    def state(self) -> dict[str, Any]:
        """Memory, tokens seen by the router, and the share of its waiting time in which the process used a core."""
        return self._ask({"do": "end"})

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        try:
            return self.ask(question)
        except ProcessEnded as ended:
            last = ended.lines[-LOG_LINES:]
            raise RuntimeError("\n".join([f"engine {self.name} ended with {ended.code}:", *last])) from None
