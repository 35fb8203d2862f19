"""The keys file and the ring: what lets a key in, what does not, and what happens when the file changes."""

import hashlib
import logging
import os
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.keys import KeyRing, KeysError, digest, line_for, new_key, parse_keys, read_file

ALICE, BOB = "seta-alices-key", "seta-bobs-key"
NAMES = st.text(string.ascii_letters + string.digits, min_size=1, max_size=60).map(lambda name: name + "._-")
KEYS = st.text(string.ascii_letters + string.digits + "-_", min_size=1, max_size=80)


class Clock:
    """A clock that the test turns."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text(line_for("alice", ALICE) + "\n")
    return file


@pytest.fixture
def ring(file: Path, clock: Clock) -> KeyRing:
    return KeyRing("keys", lambda: read_file(file), clock)


def test_a_key_is_long_and_never_twice_the_same() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(key.startswith("seta-") and len(key) == 5 + 43 for key in keys)


def test_the_line_is_what_sha256sum_says() -> None:
    assert line_for("alice", ALICE) == f"alice sha256:{hashlib.sha256(ALICE.encode()).hexdigest()}"


@pytest.mark.parametrize("name", ["", "-a", "a b", "a\nb", "é", "x" * 65, "a:b"])
def test_a_name_is_a_short_word(name: str) -> None:
    with pytest.raises(KeysError, match="cannot be a key's name"):
        line_for(name, ALICE)


@given(st.dictionaries(KEYS, NAMES, min_size=1, max_size=8), st.sampled_from(["\n", "\r\n", "\n\n# note\n  "]))
def test_what_is_written_is_read_back(keys: dict[str, str], separator: str) -> None:
    text = separator.join(line_for(name, key) for key, name in keys.items())
    assert parse_keys(text) == {digest(key): name for key, name in keys.items()}


@given(st.text(max_size=300))
def test_any_text_is_read_or_refused_without_being_repeated(text: str) -> None:
    try:
        assert parse_keys(text)
    except KeysError as error:
        long_words = {word for word in text.split() if len(word) > 6}
        assert not any(word in str(error) for word in long_words - {"seta", "keys"})


@given(st.dictionaries(KEYS, NAMES, min_size=1, max_size=8), KEYS)
def test_exactly_the_written_keys_are_known(keys: dict[str, str], other: str) -> None:
    ring = KeyRing("keys", lambda: "\n".join(line_for(name, key) for key, name in keys.items()))
    for key, name in keys.items():
        assert ring.find(key) == name
    assert ring.find(other) == keys.get(other)


@given(KEYS, st.data())
def test_a_key_that_differs_in_one_place_is_another_key(key: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(key) - 1))
    other = key[:place] + ("A" if key[place] != "A" else "B") + key[place + 1 :]
    ring = KeyRing("keys", lambda: line_for("alice", key))
    assert ring.find(key) == "alice"
    assert [ring.find(wrong) for wrong in (other, key[:-1], key + "A", "", key + "\0", key + "é")] == [None] * 6


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "there is no key"),
        ("# nobody\n\n", "there is no key"),
        (f"alice {ALICE}", "line 1 is not 'NAME sha256:"),
        (f"# x\nalice sha256:{'0' * 63}", "line 2 is not"),
        (f"alice md5:{'0' * 64}", "line 1 is not"),
        (f"alice sha256:{'0' * 64} # note", "line 1 is not"),
        (f"{line_for('alice', ALICE)}\n{line_for('bob', ALICE)}", "line 2 repeats the key of alice"),
    ],
)
def test_a_bad_file_is_refused_with_the_line_and_without_its_content(text: str, says: str) -> None:
    with pytest.raises(KeysError) as caught:
        KeyRing("--api-keys-file keys", lambda: text)
    assert str(caught.value).startswith(f"--api-keys-file keys: {says}")
    assert ALICE not in str(caught.value)


def test_two_keys_may_share_a_name_while_one_replaces_the_other() -> None:
    ring = KeyRing("keys", lambda: f"{line_for('alice', ALICE)}\n{line_for('alice', BOB)}")
    assert ring.find(ALICE) == ring.find(BOB) == "alice"


def test_every_known_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """No early end: the first key's owner waits for as many comparisons as a stranger."""
    compared: list[bytes] = []

    def compare(known: bytes, wanted: bytes) -> bool:
        compared.append(known)
        return known == wanted

    monkeypatch.setattr("server.keys.hmac.compare_digest", compare)
    ring = KeyRing("keys", lambda: f"{line_for('alice', ALICE)}\n{line_for('bob', BOB)}")
    for key in (ALICE, BOB, "neither"):
        compared.clear()
        ring.find(key)
        assert compared == [digest(ALICE), digest(BOB)]


class TestReload:
    def test_a_new_key_works_and_a_removed_one_does_not(self, ring: KeyRing, file: Path, clock: Clock) -> None:
        assert (ring.find(ALICE), ring.find(BOB)) == ("alice", None)
        file.write_text(line_for("bob", BOB) + "\n")
        clock.now += 1.0
        assert (ring.find(ALICE), ring.find(BOB)) == (None, "bob")

    def test_the_file_is_read_once_a_second_at_most(self, ring: KeyRing, file: Path, clock: Clock) -> None:
        file.write_text(line_for("bob", BOB) + "\n")
        clock.now += 0.9
        assert ring.find(ALICE) == "alice"
        clock.now += 0.1
        assert ring.find(ALICE) is None

    def test_a_replaced_file_is_seen_even_with_the_same_size_and_time(
        self, ring: KeyRing, file: Path, clock: Clock
    ) -> None:
        before = file.stat()
        file.write_text(line_for("alice", BOB) + "\n")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        clock.now += 1.0
        assert (ring.find(ALICE), ring.find(BOB)) == (None, "alice")

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (b"", "there is no key"),
            (b"alice sha256:12", "line 1 is not"),
            (b"\xff\xfe", "not UTF-8"),
            (b"#" * (1 << 21), "more than 1048576 bytes"),
            (None, "it cannot be read (No such file or directory)"),
        ],
    )
    def test_a_broken_file_keeps_the_old_keys_and_is_logged_once(
        self,
        ring: KeyRing,
        file: Path,
        clock: Clock,
        caplog: pytest.LogCaptureFixture,
        content: bytes | None,
        says: str,
    ) -> None:
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        with caplog.at_level(logging.WARNING, "seta.server"):
            for _ in range(3):
                clock.now += 1.0
                assert (ring.find(ALICE), ring.find(BOB)) == ("alice", None)
        (record,) = caplog.records
        assert record.levelname == "ERROR"
        assert says in record.message and "the keys read before stay in force" in record.message

    def test_a_mended_file_is_taken_up_again(
        self, ring: KeyRing, file: Path, clock: Clock, caplog: pytest.LogCaptureFixture
    ) -> None:
        for content in ("broken", line_for("bob", BOB), "broken"):
            file.write_text(content)
            clock.now += 1.0
            ring.find(ALICE)
        assert ring.find(BOB) == "bob"
        assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING", "ERROR"]
        assert not any(key in caplog.text for key in (ALICE, BOB, digest(BOB).hex()))


def test_a_file_that_anybody_may_write_to_is_refused(file: Path) -> None:
    file.chmod(0o666)
    with pytest.raises(KeysError, match="every user of this machine may write to it"):
        read_file(file)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(KeysError, match="not a regular file"):
            read_file(path)
