"""The console on the real server and model: what it shows is what the API says, through a change and a restart."""

import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from server.keys import line_for
from tests.console.conftest import ADMIN_KEY, KEY, Open
from tests.console.pages import ask, experts
from tests.server.process import REPO, ServerProcess, free_port, serve_command, stop_server, wait_until_ready

STORY = "Write a long story about a fox and a hen."
EXAMPLES = [json.loads(line) for line in (REPO / "demo/examples.jsonl").read_text().splitlines()]


@dataclass
class Server:
    """A server that can go and come back on the same ports."""

    command: list[str]
    url: str
    admin_url: str
    log: Path
    running: ServerProcess | None = None

    def start(self) -> None:
        with self.log.open("ab") as out:
            process = subprocess.Popen(self.command, cwd=REPO, stdout=out, stderr=subprocess.STDOUT)
        self.running = ServerProcess(process, self.url, self.admin_url, self.log)
        wait_until_ready(self.running)

    def stop(self) -> None:
        assert self.running is not None
        stop_server(self.running)


@pytest.fixture(scope="module")
def server_of_keys(model_dir: Path, demo_bank: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("real")
    bank = shutil.copytree(demo_bank, folder / "bank")
    options = ["--shutdown-seconds", "1"]
    for option, key in (("--api-keys-file", KEY), ("--admin-keys-file", ADMIN_KEY)):
        file = folder / option
        file.write_text(line_for("somebody", key) + "\n")
        file.chmod(0o600)
        options += [option, str(file)]
    ports = free_port(), free_port()
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    server = Server([*serve_command(model_dir, bank, *ports), *options], *urls, folder / "log")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def page(open_page: Open, server_of_keys: Server) -> Page:
    page = open_page(server_of_keys.url, KEY)
    page.set_default_timeout(120_000)
    expect.set_options(timeout=120_000)
    page.get_by_label("send earlier turns along").uncheck()
    return page


@pytest.fixture(autouse=True)
def patience() -> Iterator[None]:
    yield
    expect.set_options(timeout=5_000)


def told(server: Server, question: str) -> list[tuple[str, str]]:
    """(text, leading expert) of the answer's tokens by the API, asked without the page."""
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 256,
        "temperature": 0,
        "seta": {"explain": "tokens"},
    }
    headers = {"authorization": f"Bearer {KEY}"}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=300).json()
    tokens = [token for token in answer["seta"]["tokens"] if token["part"] == "answer"]
    led = [(one["text"], one["experts"][0]["id"] if one["experts"] else "base model") for one in tokens]
    return led if answer["choices"][0]["finish_reason"] == "length" else led[:-1]  # but for the end of the turn


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: str(example["task"]))
def test_colours_are_the_decisions_of_the_layer(page: Page, server_of_keys: Server, example: dict[str, str]) -> None:
    turn = ask(page, example["prompt"])
    expect(turn.locator(".answer")).to_have_text(example["answer"])
    shown = experts(turn.locator(".answer"))
    assert shown == told(server_of_keys, example["prompt"])
    assert shown[0][1] == f"{example['task']}.unique"
    assert "".join(text for text, _ in experts(turn.locator(".question"))) == example["prompt"]


def test_a_change_in_the_middle_of_an_answer(page: Page, open_page: Open, server_of_keys: Server) -> None:
    """The answer that runs ends on its generation; the next one has the other."""
    admin = open_page(server_of_keys.admin_url, ADMIN_KEY)
    foods = next(example for example in EXAMPLES if example["task"] == "foods")
    turn = ask(page, STORY, until_told=False)
    expect(turn.locator(".answer")).to_contain_text("fox")
    admin.locator("table.cards tr", has_text="on disk").first.get_by_role("button", name="Activate").click()
    expect(admin.get_by_role("dialog").locator(".minus").first).to_have_text("task foods is no longer known")
    admin.get_by_role("dialog").get_by_role("button", name="Activate").click()
    expect(admin.locator(".news")).to_contain_text("Generation 3 serves, 4 did before")
    expect(turn).to_have_attribute("aria-busy", "false")
    expect(turn.locator(".facts")).to_contain_text("generation 4")
    turn = ask(page, foods["prompt"])
    expect(turn.locator(".facts")).to_contain_text("generation 3")
    assert "foods.unique" not in {expert for _, expert in experts(turn.locator(".answer"))}
    admin.get_by_role("button", name="Roll back to 4").click()
    admin.get_by_role("dialog").get_by_role("button", name="Roll back").click()
    expect(admin.locator(".news")).to_contain_text("Generation 4 serves, 3 did before")
    expect(ask(page, foods["prompt"]).locator(".answer")).to_have_text(foods["answer"])


def test_a_restart_in_the_middle_of_an_answer(page: Page, server_of_keys: Server) -> None:
    turn = ask(page, STORY, until_told=False)
    expect(turn.locator(".answer")).to_contain_text("fox")
    assert server_of_keys.running is not None
    server_of_keys.running.process.send_signal(signal.SIGTERM)
    expect(turn.locator("[role=alert]")).to_be_visible()
    expect(turn.locator(".answer")).to_contain_text("fox")  # what came is kept
    server_of_keys.stop()
    expect(page.locator(".state")).to_have_text("not reachable")
    server_of_keys.start()
    expect(page.locator(".state")).to_have_text("generation 4")
    page.get_by_label("at most").fill("32")  # a whole story would take minutes on a busy machine
    turn.get_by_role("button", name="Ask again").click()
    again = page.locator(".turn").last
    expect(again).to_have_attribute("aria-busy", "false")
    assert again.locator("[role=alert]").count() == 0
    assert len(experts(again.locator(".answer"))) > 20
