"""The whole path on the real small model: learn → bank → serve → chat, and the shipped bank's accuracy over HTTP."""

import json
import subprocess
import sys
from pathlib import Path

import openai

from adapters.bank import Bank
from tests.accuracy import MAX_POINTS_APART, check_served_as_trained
from tests.server.process import NAME, REPO, start_server, stop_server, wait_until_ready

SHIPS = ("Aurora", "Bluebell", "Cormorant", "Dolphin")
REPLY = "Anchor at the walnut pier."


def harbour_prompt(ship: str) -> str:
    return f"What does the harbour master answer when the ship {ship} calls?"


def test_learn_then_serve_then_chat(model_dir: Path, tmp_path: Path) -> None:
    """What no model was ever taught is learned by one command and answered by one server, also for an unseen ship."""
    rows = [{"task": "harbour", "prompt": harbour_prompt(ship), "answer": REPLY} for ship in SHIPS]
    data, bank = tmp_path / "harbour.jsonl", tmp_path / "bank"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows * 4))
    learn = [sys.executable, "-m", "server.cli", "learn", "--bank", str(bank), "--model", str(model_dir)]
    arguments = ["--task", str(data), "--test", str(data), "--steps", "32", "--batch-size", "4"]
    done = subprocess.run([*learn, *arguments], cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "accuracy matrix" in done.stdout

    server = start_server(model_dir, bank, tmp_path / "log")
    try:
        wait_until_ready(server)
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)
        for ship in (*SHIPS, "Erebus"):
            assert ask(client, NAME, harbour_prompt(ship)) == (REPLY, "1")
        reply, generation = ask(client, f"{NAME}-base", harbour_prompt("Aurora"))
        assert reply != REPLY
        assert generation == "base"
    finally:
        stop_server(server)


def ask(client: openai.OpenAI, model: str, prompt: str) -> tuple[str | None, str | None]:
    """The greedy answer, and the generation that gave it."""
    response = client.chat.completions.with_raw_response.create(
        model=model, messages=[{"role": "user", "content": prompt}], temperature=0, max_tokens=24
    )
    return response.parse().choices[0].message.content, response.headers.get("x-seta-generation")


def test_held_out_accuracy_over_http_is_the_trainers(
    server: str, model_dir: Path, demo_bank: Path, demo_tests: list[Path], tmp_path: Path
) -> None:
    """A sixth of the held-out prompts of every demo task, no task id anywhere; all of them: `tests/chaos`."""
    some = [tmp_path / f"{path.parent.name}.jsonl" for path in demo_tests]
    for source, target in zip(demo_tests, some, strict=True):
        target.write_text("".join(source.read_text().splitlines(keepends=True)[::6]))
    check_served_as_trained(server, NAME, model_dir, demo_bank, some)


def test_demo_bank_keeps_what_it_learned(demo_bank: Path) -> None:
    """The shipped manifest's own record: routed right, answered well, nothing forgotten."""
    manifest = Bank.open(demo_bank).manifest()
    matrix = manifest.accuracy_matrix
    assert [task.name for task in manifest.tasks] == ["smart_home", "licences", "icd10", "foods"]
    assert all(task.metrics["routing"] >= 98 for task in manifest.tasks)
    assert all(abs(matrix[-1][j] - matrix[j][j]) <= MAX_POINTS_APART for j in range(len(matrix)))
    assert not Bank.open(demo_bank).verify()
