"""Without keys a server is for its own machine; keys come from one place; admin keys are keys of their own."""

from pathlib import Path

import pytest

from server.access import Access, is_loopback, load_access
from server.config import ServeConfig, ServeError, build_config
from server.keys import line_for


def config(tmp_path: Path, **options: object) -> ServeConfig:
    return build_config(model="m", bank=tmp_path, **options)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(line_for("alice", "a-key"))
    return path


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "localhost", "LocalHost", "::1", "[::1]"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "", "10.0.0.1", "example.com", "localhost.evil.com", "127.0.0.1.nip.io"]
)
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)


def test_without_keys_on_loopback_nobody_is_asked_for_one(tmp_path: Path) -> None:
    assert load_access(config(tmp_path)) == Access(None, None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "myhost"])
def test_without_keys_no_other_address_is_listened_on(tmp_path: Path, host: str) -> None:
    with pytest.raises(ServeError, match=f"--host {host}: others could reach it and there is no key; .*seta keys new"):
        load_access(config(tmp_path, host=host))


def test_with_keys_any_address_will_do(tmp_path: Path, keys: Path) -> None:
    access = load_access(config(tmp_path, host="0.0.0.0", api_keys_file=keys))
    assert access.clients is not None and access.clients.find("a-key") == "alice"
    assert access.admins is None


def test_admin_keys_do_not_open_the_clients_address(tmp_path: Path, keys: Path) -> None:
    with pytest.raises(ServeError, match="--host 0.0.0.0: others could reach it"):
        load_access(config(tmp_path, host="0.0.0.0", admin_keys_file=keys))


def test_keys_of_the_environment_are_taken_out_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SETA_API_KEYS", f"{line_for('alice', 'a-key')}, {line_for('bob', 'b-key')}")
    monkeypatch.setenv("SETA_ADMIN_KEYS", line_for("root", "r-key"))
    access = load_access(config(tmp_path))
    assert access.clients is not None and access.admins is not None
    assert [access.clients.find(key) for key in ("a-key", "b-key", "r-key")] == ["alice", "bob", None]
    assert access.admins.find("r-key") == "root"
    assert load_access(config(tmp_path)) == Access(None, None)


@pytest.mark.parametrize("text", ["", ",", "alice:secret"])
def test_an_empty_or_wrong_variable_does_not_mean_no_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("SETA_API_KEYS", text)
    with pytest.raises(ServeError, match="SETA_API_KEYS: ") as caught:
        load_access(config(tmp_path))
    assert "secret" not in str(caught.value)


def test_keys_come_from_one_place(tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SETA_API_KEYS", line_for("alice", "a-key"))
    with pytest.raises(ServeError, match="--api-keys-file and SETA_API_KEYS are both set"):
        load_access(config(tmp_path, api_keys_file=keys))


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match=r"--api-keys-file .*none: it cannot be read \(No such file or directory\)"):
        load_access(config(tmp_path, api_keys_file=tmp_path / "none"))


def test_one_key_does_not_open_both_doors(tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SETA_ADMIN_KEYS", line_for("root", "a-key"))
    with pytest.raises(ServeError, match="share a key"):
        load_access(config(tmp_path, api_keys_file=keys))
