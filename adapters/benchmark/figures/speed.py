"""What a training step costs: seta, this benchmark's LoRA and PEFT's own, step by step in turns.

Timings on a shared machine drift by tens of percent within minutes. So every variant runs in a process of its own, and
each round asks each for one step on the same batch; what is reported is the median over rounds of paired ratios.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adapters.asked_process import AskedProcess, ProcessEnded
from adapters.benchmark.figures.store import Figure
from adapters.data import DataError
from adapters.progress import Steps, console

VARIANTS = ("seta", "lora", "peft")
COMPILED = ("seta-compiled", "lora-compiled")
WHAT = {
    "seta": "seta: the layers above the trunk, from cached trunk outputs",
    "lora": "LoRA, rank 8, all linears: PEFT's layers in this benchmark's loop",
    "peft": "LoRA, rank 8, all linears: PEFT and transformers as documented",
    "seta-compiled": "seta, decoder layers compiled",
    "lora-compiled": "LoRA in this benchmark's loop, decoder layers compiled",
}
Answer = dict[str, Any]


class Worker(AskedProcess):
    """One variant in a process of its own, its standard error in `folder`. Raises DataError if it ended."""

    def __init__(self, setup: dict[str, Any], folder: Path) -> None:
        self.name = str(setup["variant"])
        super().__init__("adapters.benchmark.figures.speed_worker", folder / self.name)
        self.ready = self.ask(setup)

    def ask(self, question: dict[str, Any]) -> Answer:
        """Blocks until it has answered."""
        try:
            return super().ask(question)
        except ProcessEnded as ended:
            said = ended.lines or ["nothing"]
            raise DataError(f"variant {self.name} ended with code {ended.code}; it said: {said[-1]}") from None


def measure_speed(
    data: Path, task: str, model: str, rounds: int, batch_size: int, seed: int, variants: Sequence[str] = VARIANTS
) -> Figure:
    """Start all variants, then go round; the first round is not recorded. Raises DataError."""
    workers: list[Worker] = []
    logs = tempfile.TemporaryDirectory()
    try:
        for variant in variants:
            console.print(f"starting {variant}", highlight=False)
            setup = {"data": str(data), "task": task, "model": model, "batch_size": batch_size, "seed": seed}
            workers.append(Worker({**setup, "variant": variant}, Path(logs.name)))
        steps: dict[str, list[Answer]] = {worker.name: [] for worker in workers}
        with Steps("speed", (rounds + 1) * len(workers), "steps") as bar:
            for number in range(rounds + 1):
                for worker in workers:
                    answer = worker.ask({"seed": seed + number})
                    if number:
                        steps[worker.name].append(answer)
                    bar.advance(f"{worker.name} {answer['seconds']:.2f} s")
        return speed_figure(task, batch_size, steps, {worker.name: worker.ready for worker in workers})
    finally:
        for worker in workers:
            worker.stop()
        logs.cleanup()


def speed_figure(task: str, batch_size: int, steps: dict[str, list[Answer]], ready: dict[str, Answer]) -> Figure:
    """Medians over rounds; each ratio is of two steps of the same round."""
    own = [float(answer["seconds"]) for answer in steps["seta"]]
    rows, values = [], {}
    for name, answers in steps.items():
        seconds = [float(answer["seconds"]) for answer in answers]
        found = {
            "seconds": statistics.median(seconds),
            "seta_is_faster_by": statistics.median(other / ours for ours, other in zip(own, seconds, strict=True)),
            "tokens_per_second": statistics.median(a["tokens"] / a["seconds"] for a in answers),
            "peak_gib": max(answer["peak_bytes"] for answer in answers) / 2**30,
            "once_seconds": float(ready[name]["once_seconds"]),
        }
        digits = (2, 2, 0, 2, 0)
        rows.append((WHAT[name], *(f"{value:.{d}f}" for value, d in zip(found.values(), digits, strict=True))))
        values[name] = found
    return Figure(
        name=f"speed-{task}",
        title=f"One training step, {task}, batch {batch_size}",
        note=f"Medians of {len(own)} rounds in turns. "
        f"Once a task: the pass of {ready['seta']['num_examples']} examples through the trunk.",
        head=("variant", "seconds", "seta is faster by", "tokens/s", "peak GiB", "once a task, s"),
        rows=tuple(rows),
        values=values,
    )
