"""`python -m seta_runtime.bench.counting`: what counting for `/metrics` takes of a step of the engine; it starts none.

Measured is all that a step does besides answering: keep the gate's probabilities, look whose prompt ends, keep their
tasks; and its part of folding what has been kept. Divide by a step's own time (`make bench`) to get the share.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated

import numpy as np
import torch
import typer
from rich.table import Table

from adapters.progress import stdout
from seta_runtime.bench.random_parts import random_gate
from seta_runtime.leading import LeadingTasks, prompts_that_end
from seta_runtime.resident import ResidentGeneration
from seta_runtime.stats import RoutingStats

TOKENS = (1, 8, 32, 512)
TASKS, HIDDEN, WIDTH = 4, 64, 16


def main(
    steps: Annotated[int, typer.Option(min=1, help="Steps a run; enough of them, and folding has its share.")] = 4000,
    repetitions: Annotated[int, typer.Option(min=1, help="Runs; the fastest counts.")] = 5,
) -> None:
    torch.set_num_threads(1)
    table = Table("tokens a step", "decode, µs", "all prompts end, µs")
    for num_tokens in TOKENS:
        found = [measure(num_tokens, ends, steps, repetitions) for ends in (False, True)]
        table.add_row(str(num_tokens), *(f"{1e6 * seconds:.1f}" for seconds in found))
    stdout.print(table)


def measure(num_tokens: int, prompts_end: bool, steps: int, repetitions: int) -> float:
    """Seconds a step of `num_tokens` requests with one token each."""
    generation = random_generation()
    pooled = torch.randn(num_tokens, WIDTH, generator=torch.Generator().manual_seed(0))
    weights, probabilities = generation.gate.judge(pooled)
    ids = [f"chatcmpl-{index}" for index in range(num_tokens)]
    starts, computed = np.arange(num_tokens + 1), np.full(num_tokens, 40)
    prompts = computed + 1 if prompts_end else computed

    def run() -> None:
        stats, leading = RoutingStats(), LeadingTasks()
        leading.ended = lambda: prompts_that_end(ids, starts, computed, prompts)
        for _ in range(steps):
            stats.add(generation, weights, probabilities)
            leading.note(generation, None, weights)
        stats.as_dict()

    return min(_seconds(run) for _ in range(repetitions)) / steps


def random_generation() -> ResidentGeneration:
    """Tasks with an expert each, and no projections."""
    gate = random_gate(TASKS, HIDDEN, WIDTH, torch.Generator().manual_seed(0))
    names = tuple(f"t{index}" for index in range(TASKS))
    return ResidentGeneration(1, 1, names, names, torch.eye(TASKS), gate, {})


def _seconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


if __name__ == "__main__":
    typer.run(main)
