"""Rebuild the shipped demo bank: `python -m adapters.demo.bank --model DIR --out demo/bank`.

Builds the four demo tasks, learns them one after another and replaces the bank in one move, so that an interrupted
run changes nothing.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from adapters.cli import show_matrix
from adapters.data import Example, read_examples
from adapters.demo.build import TASKS, build
from adapters.learn import learn_tasks
from adapters.settings import LearnSettings, RunSettings


def build_bank(model: str, out: Path, tasks_dir: Path, wheels: Path, settings: LearnSettings, run: RunSettings) -> None:
    """Raises WheelError, DataError, BankError; `out` is then as it was."""
    build(tasks_dir, wheels)
    names = [task.name for task in TASKS]
    train = {name: read_examples(tasks_dir / name / "train.jsonl") for name in names}
    test: dict[str, list[Example]] = {name: read_examples(tasks_dir / name / "test.jsonl") for name in names}
    fresh = out.with_name(out.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    manifest = learn_tasks(fresh, model, train, test, settings, run)
    for leftover in fresh.glob("*.lock"):
        leftover.unlink()
    shutil.rmtree(out, ignore_errors=True)
    fresh.rename(out)
    show_matrix([task.name for task in manifest.tasks], manifest.accuracy_matrix)


def main() -> int:
    parser = argparse.ArgumentParser(description="Rebuild the shipped demo bank from the demo tasks.")
    parser.add_argument("--model", default="build/models/SmolLM2-135M-Instruct")
    parser.add_argument("--out", type=Path, default=Path("demo/bank"))
    parser.add_argument("--tasks", type=Path, default=Path("build/demo/tasks"))
    parser.add_argument("--wheels", type=Path, default=Path("build/demo/wheels"))
    parser.add_argument("--steps", type=int, default=LearnSettings().steps)
    parser.add_argument("--compile", action="store_true", help="train with compiled layers; needs a C++ compiler")
    args = parser.parse_args()
    run = RunSettings(compile=args.compile)
    build_bank(args.model, args.out, args.tasks, args.wheels, LearnSettings(steps=args.steps), run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
