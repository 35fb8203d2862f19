"""The tasks of a sequence: `<DIR>/<task>/{train,test}.jsonl`, cut to the wanted number of examples."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from pathlib import Path

from adapters.data import DataError, Example, read_examples

SEQUENCES: dict[str, tuple[str, ...]] = {
    "s4": ("dbpedia", "amazon", "yahoo", "agnews"),
    "s4-2": ("dbpedia", "amazon", "agnews", "yahoo"),
    "s4-3": ("yahoo", "amazon", "agnews", "dbpedia"),
    "d6": ("banking77", "nl2bash", "trace_fomc", "svamp", "trace_scienceqa", "agnews"),
    "t6": (
        "trace_cstance",
        "trace_fomc",
        "trace_meetingbank",
        "trace_scienceqa",
        "trace_numglue_cm",
        "trace_20minuten",
    ),
    "y2": ("amazon", "yelp"),
    "demo": ("smart_home", "licences", "icd10", "foods"),
}
TEST_SEED = 0
"""Which test examples are taken never depends on a run's seed: accuracies of two seeds are over the same questions."""


@dataclass(frozen=True)
class TaskData:
    """One task's examples as every method sees them."""

    name: str
    train: list[Example]
    test: list[Example]

    @property
    def digest(self) -> str:
        """SHA-256 over the examples in order."""
        hasher = hashlib.sha256()
        for part in (self.train, self.test):
            hasher.update(f"{len(part)}\n".encode())
            for example in part:
                hasher.update(example.model_dump_json(exclude_none=True).encode() + b"\n")
        return hasher.hexdigest()


def sequence_tasks(sequence: str) -> tuple[str, ...]:
    """A built-in name, or task names separated by commas. Raises DataError for a task that comes twice."""
    names = SEQUENCES.get(sequence) or tuple(name.strip() for name in sequence.split(",") if name.strip())
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        found = f"task {twice[0]!r} twice" if twice else "no task"
        raise DataError(
            f"sequence {sequence!r} holds {found}; give one of {', '.join(SEQUENCES)}, or different names with commas"
        )
    return names


def read_sequence(data_dir: Path, names: tuple[str, ...], examples: int, tests: int, seed: int) -> list[TaskData]:
    """At most `examples` training and `tests` test examples a task. Raises DataError."""
    return [_read(data_dir, name, examples, tests, seed) for name in names]


def _read(data_dir: Path, name: str, examples: int, tests: int, seed: int) -> TaskData:
    folder = data_dir / name
    if not folder.is_dir():
        known = ", ".join(sorted(path.parent.name for path in data_dir.glob("*/train.jsonl"))) or "none"
        raise DataError(f"there is no task {name!r} in {data_dir}; found: {known}")
    return TaskData(
        name,
        _sample(read_examples(folder / "train.jsonl"), examples, seed),
        _sample(read_examples(folder / "test.jsonl"), tests, TEST_SEED),
    )


def _sample(examples: list[Example], count: int, seed: int) -> list[Example]:
    return examples if len(examples) <= count else random.Random(seed).sample(examples, count)
