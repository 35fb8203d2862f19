"""A client of a running server's admin API, on the standard library alone. Importing this module imports no torch."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from adapters.bank import Bank, Manifest

PREFIX = "/admin/v1"
DEFAULT_URL = "http://127.0.0.1:8001"
KEY_VARIABLE = "SETA_ADMIN_KEY"
_TIMEOUT_SECONDS = 600.0  # activating and importing may have to read gigabytes
_MAX_ANSWER_BYTES = 64 << 20


class AdminError(Exception):
    """The server refused, or could not be reached; the message is for people, `code` for programs."""

    def __init__(self, message: str, status: int | None = None, code: str | None = None, details: Any = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.details: dict[str, Any] = details or {}


def read_key(key_file: Path | None) -> str | None:
    """The administrator's key: the file's text, or the environment's; None if neither is given. Raises: AdminError."""
    if key_file is None:
        return os.environ.get(KEY_VARIABLE) or None
    try:
        return key_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise AdminError(f"--key-file {key_file} cannot be read ({error})") from None


class AdminClient:
    """One server. Every method raises AdminError."""

    def __init__(self, url: str = DEFAULT_URL, key: str | None = None, timeout: float = _TIMEOUT_SECONDS) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise AdminError(f"{url!r} is not the URL of a server, for example {DEFAULT_URL}")
        self.url = url.rstrip("/")
        self._connect = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._path = parts.netloc.rpartition("@")[2], parts.path.rstrip("/").removesuffix(PREFIX)
        self._key = key
        self._timeout = timeout

    def generations(self) -> dict[str, Any]:
        return self._ask("GET", "/generations")

    def experts(self) -> dict[str, Any]:
        return self._ask("GET", "/experts")

    def activate(self, generation: int, expected: int | None = None) -> dict[str, Any]:
        return self._order("/activate", generation=generation, expected_generation=expected)

    def rollback(self, expected: int | None = None) -> dict[str, Any]:
        return self._order("/rollback", expected_generation=expected)

    def retire(self, generation: int) -> dict[str, Any]:
        return self._order("/retire", generation=generation)

    def pin(self, generation: int) -> dict[str, Any]:
        return self._ask("POST", f"/generations/{generation}/pin")

    def unpin(self, generation: int) -> dict[str, Any]:
        return self._ask("DELETE", f"/generations/{generation}/pin")

    def upload(self, bank: Bank, manifest: Manifest) -> int:
        """Send a generation of a local bank, with only the objects that the server's bank lacks; their bytes."""
        from adapters.bank.archive import packed_bytes

        answer = self._ask("POST", "/generations/missing", manifest.to_bytes(), "application/json")
        lacking = {found["object"] for found in answer["objects"]}
        refs = [ref for ref in manifest.refs if ref.object in lacking]
        if refs or not answer["is_in_bank"]:
            self.upload_archive(bank.export_chunks(manifest, refs), packed_bytes(manifest, refs))
        return sum(ref.object_bytes for ref in refs)

    def upload_archive(self, chunks: Iterable[bytes], size: int) -> dict[str, Any]:
        """Send an archive of `size` bytes."""
        return self._ask("POST", "/generations", chunks, "application/x-tar", size)

    def _order(self, path: str, **fields: Any) -> dict[str, Any]:
        return self._ask("POST", path, json.dumps(fields).encode(), "application/json")

    def _ask(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] | None = None,
        media_type: str | None = None,
        size: int | None = None,
    ) -> dict[str, Any]:
        headers = {} if media_type is None else {"content-type": media_type}
        if size is not None:
            headers["content-length"] = str(size)
        if self._key is not None:
            headers["authorization"] = f"Bearer {self._key}"
        connection = self._connect(self._host, timeout=self._timeout)
        try:
            status, answer = self._exchange(connection, method, self._path + PREFIX + path, body, headers)
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise AdminError(f"{self.url} does not answer as a server's admin API would ({reason})") from None
        finally:
            connection.close()
        return answer if status < 400 else _raise(status, answer)

    def _exchange(self, connection: Any, method: str, path: str, body: Any, headers: dict[str, str]) -> tuple[int, Any]:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it refused before it had read all
            connection.request(method, path, body=body, headers=headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read(_MAX_ANSWER_BYTES))


def _raise(status: int, answer: Any) -> Any:
    error = answer.get("error") if isinstance(answer, dict) else None
    if not isinstance(error, dict):
        raise AdminError(f"the server answered with status {status} and no reason", status)
    raise AdminError(str(error.get("message")), status, error.get("code"), error.get("details"))
