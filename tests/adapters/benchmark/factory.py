"""Tiny tasks, and cells over them."""

from __future__ import annotations

from pathlib import Path

from adapters.base_model import fingerprint
from adapters.benchmark.cells import Cell
from adapters.benchmark.methods import parse_method
from adapters.benchmark.records import describe
from adapters.benchmark.tasks import TaskData
from adapters.data import Example

THINGS = ("sky", "sea", "grass", "rose", "wall", "car", "house", "shirt", "lamp", "door", "book", "river")
SEQUENCE = ("colours", "sums", "names")
SETTINGS = {
    "batch_size": "4",
    "block_size": "32",
    "trunk_layers": "1",
    "density": "0.5",
    "fisher_examples": "2",
}


def write_task(folder: Path, examples: list[Example], num_test: int) -> None:
    folder.mkdir(parents=True)
    for name, part in (("train", examples[num_test:]), ("test", examples[:num_test])):
        lines = (example.model_dump_json(exclude_none=True) + "\n" for example in part)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def make_cell(spec: str, tasks: list[TaskData], model: Path, steps: int = 2, seed: int = 0) -> Cell:
    method = parse_method(spec, steps, seed, SETTINGS)
    return Cell(method, describe(",".join(SEQUENCE), tasks, seed, steps, fingerprint(model).weights_sha256))
