"""`seta generations` and the client behind it, against the admin app on a real port; only the engine is missing."""

import asyncio
import json
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import uvicorn
from typer.testing import CliRunner, Result

import adapters.cli
from adapters.activate import before_and_after, check_server, go_live
from adapters.admin_client import AdminClient, AdminError
from adapters.bank import Bank, Manifest
from adapters.settings import RunSettings
from server.access import Access
from server.app import build_admin_app
from server.generations_cli import app
from server.keys import KeyRing, line_for, new_key
from tests.adapters.bank.factory import make_tensors, next_manifest
from tests.server.house import House
from tests.server.process import free_port


@pytest.fixture
def live(house: House) -> Iterator[SimpleNamespace]:
    """The house behind an admin listener that wants a key."""
    key = new_key()
    house.service.access = Access(admins=KeyRing("test", lambda: line_for("root", key)))
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(build_admin_app(house.service), port=port, log_config=None, lifespan="off"))
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    started = threading.Event()

    async def serve() -> None:
        await house.operations.start()
        started.set()
        await server.serve()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    started.wait(10)
    while not server.started:
        threading.Event().wait(0.01)
    yield SimpleNamespace(url=f"http://127.0.0.1:{port}", key=key, house=house)
    server.should_exit = True
    thread.join(10)


def seta(live: SimpleNamespace, *arguments: str, key: str | None = None) -> Result:
    environment = {"SETA_ADMIN_URL": live.url, "SETA_ADMIN_KEY": live.key if key is None else key, "COLUMNS": "200"}
    return CliRunner().invoke(app, list(arguments), env=environment)


def test_list(live: SimpleNamespace) -> None:
    shown = seta(live, "list").stdout
    assert re.search(r"^4 +serving ", shown, re.MULTILINE) and "alpha, beta, gamma, delta" in shown
    assert "1 generations of at most 2 in memory" in shown
    assert json.loads(seta(live, "list", "--json").stdout)["serving"] == 4


def test_experts(live: SimpleNamespace) -> None:
    shown = seta(live, "experts").stdout
    assert "alpha.unique" in shown and "30.0 %" in shown and "60.0 %" in shown
    assert json.loads(seta(live, "experts", "--json").stdout)["generation"] == 4


def test_ship_and_take_back(live: SimpleNamespace) -> None:
    assert seta(live, "activate", "5", "--expect", "4").stdout.startswith("generation 5 serves, 4 did before (")
    assert seta(live, "activate", "5", "--expect", "4").stdout == "generation 5 serves already\n"
    assert seta(live, "rollback").stdout.startswith("generation 4 serves, 5 did before (")
    assert seta(live, "pin", "5").stdout.startswith("generation 5 stays in memory")
    assert "pinned" in seta(live, "list").stdout
    assert seta(live, "unpin", "5").exit_code == 0
    assert seta(live, "retire", "5").stdout == "generation 5 takes no new request and leaves memory now\n"


def test_a_refusal_is_one_line_with_its_code(live: SimpleNamespace) -> None:
    refused = seta(live, "activate", "5", "--expect", "3")
    assert refused.exit_code == 1
    assert refused.stderr == (
        "seta: Generation 4 is in service, not 3; look again before you activate 5 [generation_mismatch]\n"
    )
    refused = seta(live, "activate", "9")
    assert (
        refused.stderr.startswith("seta: generations/00009.json does not exist") and "[not_in_bank]" in refused.stderr
    )


def test_keys(live: SimpleNamespace, tmp_path: Path) -> None:
    assert "[invalid_api_key]" in seta(live, "list", key="wrong").stderr
    assert "[invalid_api_key]" in seta(live, "list", key="").stderr
    file = tmp_path / "key"
    file.write_text(live.key + "\n")
    assert seta(live, "list", "--key-file", str(file), key="").exit_code == 0
    assert "cannot be read" in seta(live, "list", "--key-file", str(tmp_path / "none")).stderr


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://127.0.0.1:1/some/where/"])
def test_no_server(url: str) -> None:
    refused = CliRunner().invoke(app, ["list", "--url", url])
    assert refused.exit_code == 1
    assert refused.stderr == (
        f"seta: {url.rstrip('/')} does not answer as a server's admin API would (Connection refused)\n"
    )


@pytest.mark.parametrize("url", ["127.0.0.1:8001", "ftp://x", "http://", "http://x/?y"])
def test_not_a_url(url: str) -> None:
    assert "is not the URL of a server" in CliRunner().invoke(app, ["list", "--url", url]).stderr


@pytest.fixture
def trainer(live: SimpleNamespace, tmp_path: Path) -> Bank:
    """The trainer's own copy of the bank."""
    return Bank.open(shutil.copytree(live.house.bank.root, tmp_path / "trainer"))


def test_upload_of_a_generation_and_of_an_archive(live: SimpleNamespace, trainer: Bank, tmp_path: Path) -> None:
    for task in ("zeta", "eta"):
        trainer.publish(next_manifest(trainer, trainer.manifest(max(trainer.generations())), task))
    done = seta(live, "upload", "--bank", str(trainer.root), "--generation", "6")
    assert done.stdout.startswith("generation 6 is in the server's bank, 0.0 MiB sent; seta generations activate 6")
    trainer.export(7, tmp_path / "7.tar")
    assert seta(live, "upload", "--archive", str(tmp_path / "7.tar")).stdout.startswith("generation 7 is in")
    assert live.house.bank.generations()[-2:] == [6, 7]
    assert live.house.bank.verify() == []
    assert live.house.bank.current() == 4
    assert "give either --bank or --archive" in seta(live, "upload").stderr
    assert "cannot be read" in seta(live, "upload", "--archive", str(tmp_path / "none.tar")).stderr
    assert "is not a bank" in seta(live, "upload", "--bank", str(tmp_path)).stderr


def test_only_what_the_server_lacks_is_sent(live: SimpleNamespace, trainer: Bank) -> None:
    tensors = make_tensors({(1, "v_proj"): [(0, 0)]}, rank=4000)
    trainer.publish(next_manifest(trainer, trainer.manifest(5), "zeta", tensors))
    client = AdminClient(live.url, live.key)
    manifest = trainer.manifest(6)
    new = manifest.gate.object_bytes + manifest.experts[-1].object_bytes
    assert client.upload(trainer, manifest) == new
    assert client.upload(trainer, manifest) == 0


def test_an_upload_that_is_too_large_is_told_although_it_is_not_read(live: SimpleNamespace) -> None:
    with pytest.raises(AdminError, match="more than 1048576 bytes") as caught:
        AdminClient(live.url, live.key).upload_archive(iter([bytes(1 << 20)] * 8), 8 << 20)
    assert (caught.value.status, caught.value.code) == (413, "too_large")


class TestLearnActivate:
    """What `seta learn --activate` does before and after the training."""

    def learned(self, bank: Bank) -> None:
        bank.publish(next_manifest(bank, bank.manifest(), "zeta"), make_current=False)

    def test_same_bank(self, live: SimpleNamespace) -> None:
        bank, client = live.house.bank, AdminClient(live.url, live.key)
        before = check_server(client, bank.root)
        self.learned(bank)
        assert go_live(client, bank.root, bank.manifest(6), before) >= 0
        assert (live.house.generations.current, bank.current()) == (6, 6)

    def test_the_servers_bank_is_elsewhere(self, live: SimpleNamespace, trainer: Bank) -> None:
        trainer.set_current(4)
        client = AdminClient(live.url, live.key)
        before = check_server(client, trainer.root)
        self.learned(trainer)
        go_live(client, trainer.root, trainer.manifest(6), before)
        assert (live.house.generations.current, live.house.bank.current(), trainer.current()) == (6, 6, 6)

    def test_a_server_that_serves_something_else(self, live: SimpleNamespace, trainer: Bank) -> None:
        trainer.set_current(5)
        with pytest.raises(AdminError, match=r"the server serves generation 4, .* has generation 5 in service"):
            check_server(AdminClient(live.url, live.key), trainer.root)

    def test_a_rollback_during_the_training_is_not_overruled(self, live: SimpleNamespace) -> None:
        bank, client = live.house.bank, AdminClient(live.url, live.key)
        before = check_server(client, bank.root)
        self.learned(bank)
        client.rollback()
        with pytest.raises(AdminError, match="generation 6 is published but not live: Generation 3 is in service"):
            go_live(client, bank.root, bank.manifest(6), before)
        assert (live.house.generations.current, bank.current()) == (3, 3)

    def test_the_command(self, live: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """All but the training, which here is done in no time."""
        bank, data = live.house.bank, tmp_path / "new.jsonl"
        data.write_text('{"task": "zeta", "prompt": "a", "answer": "b"}\n')

        def learn_tasks(*given: object) -> Manifest:
            (run,) = (one for one in given if isinstance(one, RunSettings))
            assert not run.make_current
            self.learned(bank)
            return bank.manifest(6)

        monkeypatch.setattr("adapters.learn.learn_tasks", learn_tasks)
        arguments = ["learn", "--bank", str(bank.root), "--model", "m", "--task", str(data), "--activate"]
        done = CliRunner().invoke(adapters.cli.app, [*arguments, live.url], env={"SETA_ADMIN_KEY": live.key})
        assert done.exit_code == 0, done.output
        assert "before, generation 4" in done.stdout and "after, generation 6" in done.stdout
        assert re.search(r"alpha +│ 90.00 +│ 90.00", done.stdout) and re.search(r"zeta +│ - +│ 86.00", done.stdout)
        assert "generation 6 is live, activated in" in done.stdout
        assert live.house.generations.current == 6

    def test_a_server_that_is_not_there_is_said_before_the_training(self, live: SimpleNamespace) -> None:
        bank = live.house.bank
        arguments = ["learn", "--bank", str(bank.root), "--model", "m", "--task", "none.jsonl", "--activate"]
        done = CliRunner().invoke(adapters.cli.app, [*arguments, "http://127.0.0.1:1"])
        assert done.exit_code == 1
        assert "http://127.0.0.1:1 does not answer as a server's admin API would" in done.stderr

    def test_before_and_after(self, live: SimpleNamespace) -> None:
        bank = live.house.bank
        rows = before_and_after(bank.manifest(1), bank.manifest(2))
        assert rows == [("alpha", 90.0, 90.0), ("beta", None, 89.0)]
        task = bank.manifest(2).tasks[1].model_copy(update={"metrics": {"accuracy": 75.0}})
        unmeasured = bank.manifest(2).model_copy(
            update={"accuracy_matrix": (), "tasks": (bank.manifest(2).tasks[0], task)}
        )
        assert before_and_after(bank.manifest(1), unmeasured) == [("alpha", 90.0, None), ("beta", None, 75.0)]


def test_activate_on_all_replicas(live: SimpleNamespace) -> None:
    """Here the host name has one address; what happens with several is in test_replicas.py."""
    assert seta(live, "activate", "5", "--expect", "4", "--all").stdout == (
        f"{live.url}: generation 5 serves, 4 did before\n"
    )
    assert live.house.generations.current == 5 and "pinned" not in seta(live, "list").stdout
    refused = seta(live, "activate", "9", "--all")
    assert refused.exit_code == 1 and "nothing has changed [not_in_bank]" in refused.stderr
