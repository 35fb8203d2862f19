"""Taking the ports: the first thing a server does, before anything slow is even imported."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from .config import ServeConfig, ServeError

# A client that is gone without a word, its machine or its network off, is noticed after 60 + 4 x 15 seconds.
_KEEP_ALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))


@dataclass(frozen=True)
class Sockets:
    """Listening sockets: for clients, and for administrators if there is an admin listener."""

    clients: socket.socket
    admin: socket.socket | None


@contextmanager
def bind(config: ServeConfig) -> Iterator[Sockets]:
    """Both listeners' sockets until the block ends. Raises: ServeError."""
    with ExitStack() as open_sockets:
        clients = open_sockets.enter_context(_listen(config.host, config.port, "--port"))
        address = config.admin_address
        admin = None if address is None else open_sockets.enter_context(_listen(*address, "--admin-port"))
        yield Sockets(clients, admin)


def _listen(host: str, port: int, port_option: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # the connections inherit it
    for option, value in _KEEP_ALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    try:
        sock.bind((host, port))
        sock.listen(1024)  # only now does a port in use show when the other side set SO_REUSEADDR too
    except OSError as error:
        sock.close()
        reason = error.strerror or str(error)
        raise ServeError(
            f"cannot listen on {host}:{port} ({reason}); stop what uses the port, or give another {port_option}"
        ) from None
    return sock
