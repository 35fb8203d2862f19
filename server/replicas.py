"""One activation on several servers: every replica behind a host name, for `seta generations activate --all`.

Each server keeps for itself what it serves, so an order to one of them changes nothing on the others. Here the new
generation is brought into the memory of all first, which takes the time and finds what is wrong; only then does it
begin to serve, on one after the other within milliseconds.
"""

import socket
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from adapters.admin_client import AdminClient, AdminError

Say = Callable[[str], None]


def addresses(url: str) -> list[str]:
    """The URL once for each address that its host name has. Raises: AdminError."""
    parts = urlsplit(url)
    if parts.scheme != "http" or parts.hostname is None:
        raise AdminError(f"--all goes to each address behind a name, so it takes an http:// URL, not {url!r}")
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_STREAM)
    except OSError as error:
        raise AdminError(f"{parts.hostname} has no address ({error.strerror or error})") from None
    hosts = sorted({str(one[4][0]) for one in found})
    return [f"http://{f'[{host}]' if ':' in host else host}:{parts.port or 80}{parts.path}" for host in hosts]


def activate_all(servers: Sequence[AdminClient], generation: int, expected: int | None, say: Say) -> None:
    """Serve `generation` on every server, or change nothing on any.

    Raises: AdminError. If a server fails after others have changed already, the message says which do not serve it.
    """
    before = [server.generations() for server in servers]
    for server, answer in zip(servers, before, strict=True):
        if expected is not None and answer["serving"] not in (expected, generation):
            message = (
                f"{server.url} serves generation {answer['serving']}, not {expected}; look again before you activate"
            )
            raise AdminError(f"{message} {generation}", code="generation_mismatch")
    others = [server for server, answer in zip(servers, before, strict=True) if not _is_kept(answer, generation)]
    _hold(others, generation)
    try:
        _switch(servers, generation, say)
    finally:
        _let_go(others, generation)


def _is_kept(answer: dict[str, Any], generation: int) -> bool:
    """Whether this server keeps the generation in memory anyhow: it serves, or is pinned."""
    pinned = [one["generation"] for one in answer["generations"] if one["is_pinned"]]
    return generation in (answer["serving"], *pinned)


def _hold(servers: Sequence[AdminClient], generation: int) -> None:
    """Have it in memory on all of them, or on none more than before."""
    for index, server in enumerate(servers):
        try:
            server.pin(generation)
        except AdminError as error:
            _let_go(servers[:index], generation)
            raise AdminError(f"{server.url}: {error}; nothing has changed", error.status, error.code) from None


def _let_go(servers: Sequence[AdminClient], generation: int) -> None:
    for server in servers:
        try:
            server.unpin(generation)
        except AdminError as error:
            if error.code != "not_in_memory":  # it has left meanwhile: nothing holds it
                raise AdminError(f"{server.url}: generation {generation} is still pinned: {error}") from None


def _switch(servers: Sequence[AdminClient], generation: int, say: Say) -> None:
    failed: list[str] = []
    for server in servers:
        try:
            change = server.activate(generation)
        except AdminError as error:
            failed.append(f"{server.url}: {error}")
            continue
        was = "already" if change["serving"] == change["previous"] else f"{change['previous']} did before"
        say(f"{server.url}: generation {generation} serves, {was}")
    if failed:
        raise AdminError(
            f"generation {generation} serves on {len(servers) - len(failed)} of {len(servers)} servers, not on "
            f"{'; '.join(failed)}; give the order again, or activate the old generation with --all"
        )
