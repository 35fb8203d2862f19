"""Are general prompts answered as by the base model? Greedy answers with the bank and without, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from adapters.benchmark.figures.opened import OpenedBank
from adapters.benchmark.figures.store import Figure
from adapters.data import read_prompts, render_chat
from adapters.generate import generate
from adapters.progress import track


def held_out_prompts() -> list[str]:
    """200 general prompts on which nothing was fitted."""
    return read_prompts(Path(str(files("adapters.benchmark").joinpath("general_prompts.jsonl"))))


def measure_general(opened: OpenedBank, prompts: Sequence[str], max_tokens: int, name: str) -> Figure:
    """A prompt is routed if the gate sends any token of it, or of its answer, to a task.

    Of one that is not, the base model's answer is not generated again: no expert was on, so that is what was computed.
    """
    routed, different = [], []
    for prompt in track(prompts, "general prompts", unit="prompts"):
        ids = render_chat(opened.model.backbone.tokenizer, [{"role": "user", "content": prompt}])
        ours = generate(opened.model, opened.gate, ids, max_tokens)
        if not bool(opened.gate.decide(ours.pooled).any()):
            continue
        routed.append(prompt)
        if ours.tokens != generate(opened.model, None, ids, max_tokens).tokens:
            different.append(prompt)
    count = len(prompts)
    same = 100 * (count - len(different)) / count
    tasks = ", ".join(task.name for task in opened.manifest.tasks)
    return Figure(
        name=f"general-{name}",
        title="General prompts, answered with the bank and by the base model",
        note=f"Greedy, up to {max_tokens} tokens. Tasks in the bank: {tasks}.",
        head=("prompts", "same answer", "of these routed nowhere", "different"),
        rows=((str(count), f"{same:.1f} %", f"{100 * (count - len(routed)) / count:.1f} %", str(len(different))),),
        values={"same_percent": same, "routed": routed, "different": different},
    )
