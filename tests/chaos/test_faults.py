"""Whatever is sent to the server or done to its disk, the old generation serves on and no request fails."""

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from adapters.admin_client import AdminError
from adapters.bank.objects import object_path
from tests.chaos.archives import BAD, archive, good
from tests.chaos.clients import Crowd
from tests.chaos.conftest import CURRENT, Live, Start
from tests.server.process import NAME


@contextmanager
def unharmed(live: Live, prompts: list[str]) -> Iterator[None]:
    """Clients ask all the while; afterwards all is as it was."""
    crowd, current = Crowd(live.url, NAME, prompts, num_clients=2), live.bank.current()
    in_bank = live.bank.generations()
    with crowd.running():
        crowd.wait_for(4)
        yield
        crowd.wait_for(4)
    assert crowd.failed == []
    assert {one.generation for one in crowd.seen} == {str(current)}
    assert (live.serving, live.bank.current(), live.bank.generations()) == (current, current, in_bank)
    assert live.bank.verify() == []
    strangers = {path.name for path in live.bank.root.iterdir()}
    assert strangers <= {"CURRENT", "generations", "objects", ".lock"}


def test_archives_that_nobody_should_accept(start: Start, prompts: list[str]) -> None:
    live = start("--max-upload-mib", "48")
    with unharmed(live, prompts):
        for name, bad in BAD.items():
            data = bad.make(live.bank)
            with pytest.raises(AdminError) as caught:
                live.admin.upload_archive(iter([data]), len(data))
            assert (caught.value.status, caught.value.code) == (bad.status, bad.code), name
            assert str(live.bank.root) not in str(caught.value)
    data = archive(good(live.bank))
    assert live.admin.upload_archive(iter([data]), len(data))["generation"] == CURRENT + 1
    assert live.admin.activate(CURRENT + 1)["serving"] == CURRENT + 1


def test_a_bank_whose_files_are_damaged(live: Live, prompts: list[str]) -> None:
    """The manifest and each kind of object, truncated, altered, or gone; then whole again, and it goes live."""
    bank = live.bank
    expert, gate = bank.manifest(1).experts[0].ref, bank.manifest(1).gate.ref
    files = [bank.root / "generations/00001.json", *(bank.root / object_path(ref.object) for ref in (expert, gate))]
    with unharmed(live, prompts):
        for file in files:
            data = file.read_bytes()
            for broken in (data[: len(data) // 2], data[:-9] + b"\0" + data[-8:], None):
                file.unlink() if broken is None else file.write_bytes(broken)
                with pytest.raises(AdminError) as caught:
                    live.admin.activate(1)
                assert caught.value.code in ("bank_corrupt", "not_in_bank", "bank_format_too_new"), caught.value
                file.write_bytes(data)
    assert live.admin.activate(1)["serving"] == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "disk"
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(path)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"mounting a tmpfs needs root: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_full_disk(start: Start, demo_bank: Path, small_disk: Path, prompts: list[str]) -> None:
    root = shutil.copytree(demo_bank, small_disk / "bank")
    live = start(bank=root)
    data = archive(good(live.bank))
    filler = small_disk / "filler"
    with unharmed(live, prompts):
        filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - len(data) // 2))
        with pytest.raises(AdminError) as caught:
            live.admin.upload_archive(iter([data]), len(data))
        assert (caught.value.status, caught.value.code) == (507, "disk_full")
        with filler.open("ab", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(bytes(4096))
        with pytest.raises(AdminError) as caught:
            live.admin.activate(3)
        assert (caught.value.status, caught.value.code) == (507, "disk_full")
    assert live.resident == {CURRENT}
    filler.unlink()
    assert live.admin.activate(3)["serving"] == 3


def test_a_slow_disk_delays_nobody_else(live: Live, prompts: list[str]) -> None:
    """Nor the order to go back: it does not wait, and the slow one then changes nothing."""
    (live.faults / "slow").write_text("4")
    refusals: list[str | None] = []

    def activate() -> None:
        with pytest.raises(AdminError) as caught:
            live.admin.activate(2)
        refusals.append(caught.value.code)

    with unharmed(live, prompts):
        slow = threading.Thread(target=activate)
        slow.start()
        time.sleep(1)
        assert live.admin.generations()["generations"][2]["state"] == "loading"
        start = time.monotonic()
        assert live.admin.activate(CURRENT)["serving"] == CURRENT
        assert time.monotonic() - start < 3
        slow.join(120)
    assert refusals == ["superseded"]
    (live.faults / "slow").unlink()
    assert live.admin.activate(2)["serving"] == 2


def test_a_load_that_hangs_can_be_called_off(live: Live) -> None:
    (live.faults / "slow").write_text("60")
    codes: list[str | None] = []

    def activate() -> None:
        with pytest.raises(AdminError) as caught:
            live.admin.activate(2)
        codes.append(caught.value.code)

    hanging = threading.Thread(target=activate)
    hanging.start()
    time.sleep(1)
    live.admin.retire(2)
    hanging.join(10)
    (live.faults / "slow").unlink()
    assert codes == ["load_called_off"]
    assert live.admin.activate(3)["serving"] == 3


def test_two_activations_at_once(live: Live, prompts: list[str]) -> None:
    """Of two that expect the same generation one wins, the other is told that it came too late."""
    for _ in range(3):
        results: list[object] = []

        def activate(number: int, results: list[object] = results) -> None:
            try:
                results.append(live.admin.activate(number, expected=CURRENT)["serving"])
            except AdminError as error:
                results.append(error.code)

        threads = [threading.Thread(target=activate, args=(number,)) for number in (2, 3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        winner, loser = sorted(results, key=str)
        assert winner in (2, 3) and loser in ("generation_mismatch", "superseded"), results
        assert live.serving == live.bank.current() == winner
        live.admin.activate(CURRENT)


def test_the_bank_is_deleted_under_the_running_server(live: Live, prompts: list[str]) -> None:
    live.admin.activate(3)
    live.admin.activate(CURRENT)
    crowd = Crowd(live.url, NAME, prompts, num_clients=4)
    shutil.rmtree(live.bank.root)
    with crowd.running():
        crowd.wait_for(30)
        for number in (3, 2):
            with pytest.raises(AdminError) as caught:
                live.admin.activate(number)
            assert caught.value.status in (404, 500) and caught.value.code in ("not_in_bank", "disk_error")
        answer = live.admin.generations()
        assert answer["problems"] and answer["serving"] == CURRENT
        assert live.ask(model=f"{NAME}@3").headers["x-seta-generation"] == "3"
        crowd.wait_for(10)
    assert crowd.failed == []


def test_another_generation_under_the_same_number(live: Live) -> None:
    """A bank that was replaced: what is in memory is not what the disk says, so the disk's is not made CURRENT."""
    live.admin.pin(3)
    other = live.bank.manifest(3).model_copy(update={"accuracy_matrix": ()})
    manifest = live.bank.root / "generations/00003.json"
    data = manifest.read_bytes()
    manifest.write_bytes(other.to_bytes())
    with pytest.raises(AdminError) as caught:
        live.admin.activate(3)
    assert caught.value.code == "bank_conflict"
    live.admin.unpin(3)
    live.admin.retire(3)
    assert live.admin.activate(3)["serving"] == 3  # now it is the disk's
    assert live.ask(model=f"{NAME}@3").headers["x-seta-generation"] == "3"
    manifest.write_bytes(data)
