"""Taking the port: the first thing a server does, before anything slow is even imported."""

import socket

from .config import ServeConfig, ServeError

# A client that is gone without a word, its machine or its network off, is noticed after 60 + 4 x 15 seconds.
_KEEP_ALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))


def bind(config: ServeConfig) -> socket.socket:
    """The listening socket, taken before anything slow starts. Raises: ServeError."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # the connections inherit it
    for option, value in _KEEP_ALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    try:
        sock.bind((config.host, config.port))
        sock.listen(1024)  # only now does a port in use show when the other side set SO_REUSEADDR too
    except OSError as error:
        sock.close()
        reason = error.strerror or str(error)
        raise ServeError(
            f"cannot listen on {config.host}:{config.port} ({reason}); stop what uses the port, or give another --port"
        ) from None
    return sock
