"""How a gate decides on the sequence's test prompts: as they are, by position, and without their instruction."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import torch

from adapters.benchmark.records import Routing
from adapters.data import Example
from adapters.evidence import Gate
from adapters.examples import Prepared

POSITIONS = (1, 4, 8, 16, 32, 64)
COMMON_SHARE = 0.5
LABEL = re.compile(r"^([^\s:][^:\n]{0,30}:)\s+(?=\S)")


@torch.no_grad()
def measure_routing(gate: Gate, tests: Mapping[int, Prepared], prefix: int) -> Routing:
    """`tests`: held-out prompts by task index, every task that the gate knows; `prefix`: the template's tokens."""
    confusion = []
    hits: dict[int, list[bool]] = {n: [] for n in POSITIONS}
    for task in sorted(tests):
        data = tests[task]
        counts = [0] * (len(tests) + 1)
        for tokens, pooled in zip(data.tokens, data.pooled, strict=True):
            leaders = gate.probabilities(pooled[: len(tokens.prompt)]).argmax(-1)
            counts[int(leaders[-1])] += 1
            for n in POSITIONS:
                if prefix + n <= len(tokens.prompt):
                    hits[n].append(int(leaders[prefix + n - 1]) == task)
        confusion.append(tuple(100 * count / len(data) for count in counts))
    by_position = {n: 100 * sum(found) / len(found) for n, found in hits.items() if found}
    return Routing(confusion=tuple(confusion), by_position=by_position)


def strip_instructions(train: Sequence[Example], examples: Sequence[Example]) -> list[Example]:
    """The examples with bare text for prompts: without the lines that over half of the task's training prompts hold
    word for word, and without the labels ("Title:", "Text:") that over half of them begin a line with.

    A prompt that is all instruction stays as it is, and so does a chat of several messages.
    """
    lines: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    for example in train:
        found = (example.prompt or "").split("\n")
        lines.update({line.strip() for line in found})
        labels.update({match[1] for line in found if (match := LABEL.match(line))})
    least = COMMON_SHARE * len(train)
    common_lines = {line for line, count in lines.items() if count > least}
    common_labels = {label for label, count in labels.items() if count > least}
    return [_stripped(example, common_lines, common_labels) for example in examples]


def _stripped(example: Example, lines: set[str], labels: set[str]) -> Example:
    kept = [line for line in (example.prompt or "").split("\n") if line.strip() not in lines]
    bare = [LABEL.sub("", line) if (m := LABEL.match(line)) and m[1] in labels else line for line in kept]
    text = "\n".join(bare).strip()
    return example.model_copy(update={"prompt": text}) if text else example
