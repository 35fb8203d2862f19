"""A bank archive that arrives over HTTP: bounded, streamed to disk, and in the bank only once all of it is verified.

The bytes go to a file without a name in the bank's directory, so whatever happens to this process, nothing is left.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO

from fastapi import Request
from starlette.requests import ClientDisconnect

from adapters.bank import Bank, BankError, BankIOError, Manifest

from .bodies import client_closed
from .errors import ApiError

MEDIA_TYPE = "application/x-tar"
_PIECE_BYTES = 1 << 20


class Uploads:
    """One upload at a time into one bank."""

    def __init__(self, bank: Bank, max_bytes: int, patience_seconds: float) -> None:
        self._bank = bank
        self._max_bytes = max_bytes
        self._patience_seconds = patience_seconds
        self._one = asyncio.Lock()

    async def receive(self, request: Request) -> Manifest:
        """The generation that the request's body holds, now in the bank; it does not serve yet.

        Raises: ApiError 408, 413, 415, 429, 499, 507; BankError.
        """
        self._check_headers(request)
        if self._one.locked():
            raise ApiError(
                429, "Another archive is being uploaded; try again", code="busy", headers={"retry-after": "10"}
            )
        async with self._one, _nameless_file(self._bank.root) as file:
            await self._store(request, file)
            return await asyncio.to_thread(self._bank.import_file, file)

    def _check_headers(self, request: Request) -> None:
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != MEDIA_TYPE or request.headers.get("content-encoding", "identity") != "identity":
            message = f"The body must be {MEDIA_TYPE}, not compressed"
            raise ApiError(415, message, code="unsupported_media_type")
        length = request.headers.get("content-length", "")
        if length.isascii() and length.isdecimal() and int(length) > self._max_bytes:
            raise self._too_large()

    async def _store(self, request: Request, file: BinaryIO) -> None:
        size, piece = 0, bytearray()
        async for chunk in self._chunks(request):
            size += len(chunk)
            if size > self._max_bytes:
                raise self._too_large()
            piece += chunk
            if len(piece) >= _PIECE_BYTES:
                await _write(file, bytes(piece))
                piece.clear()
        await _write(file, bytes(piece))

    async def _chunks(self, request: Request) -> AsyncIterator[bytes]:
        """The body's pieces; a client that sends nothing for too long is not waited for."""
        stream = aiter(request.stream())
        while True:
            try:
                async with asyncio.timeout(self._patience_seconds):
                    chunk = await anext(stream)
            except StopAsyncIteration:
                return
            except TimeoutError:
                message = f"Nothing of the archive arrived for {self._patience_seconds:g} s"
                raise ApiError(408, message, code="request_timeout", headers={"connection": "close"}) from None
            except ClientDisconnect:
                raise client_closed() from None
            yield chunk

    def _too_large(self) -> ApiError:
        return ApiError(413, f"The archive has more than {self._max_bytes} bytes", code="too_large")


@asynccontextmanager
async def _nameless_file(directory: Path) -> AsyncIterator[BinaryIO]:
    try:
        file = await asyncio.to_thread(tempfile.TemporaryFile, "w+b", dir=directory)
    except OSError as error:
        raise _disk_error(error) from error
    try:
        yield file
    finally:
        await asyncio.to_thread(file.close)


async def _write(file: BinaryIO, data: bytes) -> None:
    try:
        await asyncio.to_thread(_write_through, file, data)
    except OSError as error:
        raise _disk_error(error) from error


def _write_through(file: BinaryIO, data: bytes) -> None:
    file.write(data)
    file.flush()  # a full disk shows now, not when the file is closed


def _disk_error(error: OSError) -> BankError:
    return BankIOError(f"the archive cannot be stored ({error.strerror}); check free space and permissions")
