"""Pinned wheels as data: cached, checked, read member by member."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from adapters.demo import wheels


@pytest.fixture
def toy(tmp_path: Path) -> wheels.Wheel:
    path = tmp_path / "toy_data-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("toy/b.txt", "two")
        archive.writestr("toy/a.txt", "one")
        archive.writestr("toy/c.bin", "three")
    return wheels.Wheel("toy-data", "1.0", hashlib.sha256(path.read_bytes()).hexdigest())


def test_a_cached_wheel_is_read_member_by_member(toy: wheels.Wheel, tmp_path: Path) -> None:
    path = wheels.fetch(toy, tmp_path)
    assert wheels.read_member(path, "toy/a.txt") == b"one"
    assert list(wheels.read_members(path, "toy/", ".txt").items()) == [("toy/a.txt", b"one"), ("toy/b.txt", b"two")]
    with pytest.raises(wheels.WheelMemberError, match="no member toy/z"):
        wheels.read_member(path, "toy/z")
    with pytest.raises(wheels.WheelMemberError, match="3 bytes, at most 2"):
        wheels.read_member(path, "toy/a.txt", max_bytes=2)


def test_changed_bytes_are_refused(toy: wheels.Wheel, tmp_path: Path) -> None:
    with (tmp_path / toy.file_name).open("ab") as file:
        file.write(b"!")
    with pytest.raises(wheels.WheelDigestMismatch, match=toy.sha256):
        wheels.fetch(toy, tmp_path)


def test_offline_says_what_to_do(toy: wheels.Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(wheels.WheelUnavailable, match=r"go online, or put toy_data-1\.0-py3-none-any\.whl into"):
        wheels.fetch(toy, tmp_path / "empty")
