"""A fifth task is learned and goes live: the first four keep their answers, byte for byte.

float32, so that an answer does not depend on which other requests share its batch: the rest is the new task's doing.
"""

import asyncio
import json
import random
import subprocess
import sys
import unicodedata
from pathlib import Path

from adapters.data import Example
from tests.chaos.clients import Crowd, Seen, answers
from tests.chaos.conftest import CURRENT, Live, Start
from tests.server.process import NAME, REPO

MIN_SAME_PERCENT = 99.0
MAX_POINTS_LOST = 0.5
CONCURRENCY = 16
CATEGORIES = {
    "Lu": "capital letter",
    "Ll": "small letter",
    "Nd": "digit",
    "So": "symbol",
    "Mn": "mark",
    "Po": "punctuation",
}
QUESTION = "Which kind of character has this Unicode name?\n"


def fifth_task(path: Path, count: int, seed: int) -> Path:
    """Real data that Python itself has: names of characters and their general category."""
    named = [chr(code) for code in range(0x110000) if unicodedata.name(chr(code), None)]
    known = [char for char in named if unicodedata.category(char) in CATEGORIES]
    chosen = random.Random(seed).sample(known, count)
    rows = [
        {
            "task": "unicode",
            "prompt": QUESTION + unicodedata.name(char).lower(),
            "answer": CATEGORIES[unicodedata.category(char)],
        }
        for char in chosen
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def accuracies(found: dict[str, Seen], examples: dict[str, list[Example]]) -> dict[str, float]:
    """Percent of each task's examples answered exactly."""
    return {
        task: 100 * sum(found[str(one.prompt)].text == one.answer for one in held_out) / len(held_out)
        for task, held_out in examples.items()
    }


def test_older_tasks_keep_their_answers(
    start: Start, model_dir: Path, tmp_path: Path, examples: dict[str, list[Example]]
) -> None:
    live = start("--dtype", "float32")
    prompts = list(dict.fromkeys(str(one.prompt) for held_out in examples.values() for one in held_out))
    before = asyncio.run(answers(live.url, NAME, prompts, CONCURRENCY))
    learn(live, model_dir, tmp_path, prompts)
    after = asyncio.run(answers(live.url, NAME, prompts, CONCURRENCY))
    assert {one.generation for one in after.values()} == {str(CURRENT + 1)}

    same = 100 * sum(before[prompt].tokens == after[prompt].tokens for prompt in prompts) / len(prompts)
    old, new = accuracies(before, examples), accuracies(after, examples)
    print(f"\n{same:.2f} % of {len(prompts)} answers of the first four tasks are the same after the fifth")
    for task in examples:
        print(f"{task}: accuracy {old[task]:.2f} before, {new[task]:.2f} after")
    assert same >= MIN_SAME_PERCENT
    assert all(new[task] >= old[task] - MAX_POINTS_LOST for task in examples)


def learn(live: Live, model_dir: Path, folder: Path, prompts: list[str]) -> None:
    """One command from data to live, while clients go on asking."""
    train, test = fifth_task(folder / "train.jsonl", 240, 0), fifth_task(folder / "test.jsonl", 60, 1)
    command = [sys.executable, "-m", "server.cli", "learn", "--bank", str(live.bank.root), "--model", str(model_dir)]
    command += ["--task", str(train), "--test", str(test), "--steps", "60", "--activate", live.process.admin_url]
    crowd = Crowd(live.url, NAME, prompts, num_clients=1)
    with crowd.running():
        done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print("\n".join(done.stdout.splitlines()[-12:]))
    assert crowd.failed == []
