"""Who may come in at all: the keys of the two listeners, and the rule that without keys a listener is on loopback."""

from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from . import environment
from .config import ServeConfig, ServeError
from .keys import KeyRing, KeysError, read_file

API_KEYS = "SETA_API_KEYS"
ADMIN_KEYS = "SETA_ADMIN_KEYS"


@dataclass(frozen=True)
class Access:
    """The clients' keys and the administrators'. None: no key is asked for, and the listener is on loopback."""

    clients: KeyRing | None = None
    admins: KeyRing | None = None


def load_access(config: ServeConfig) -> Access:
    """The keys of the options, or of the environment. Raises: ServeError, also if `host` is too open without keys."""
    clients = _ring("--api-keys-file", config.api_keys_file, API_KEYS)
    admins = _ring("--admin-keys-file", config.admin_keys_file, ADMIN_KEYS)
    if clients and admins and clients.digests & admins.digests:
        raise KeysError(f"{clients.source} and {admins.source} share a key; an administrator needs one of their own")
    refuse_exposure("--host", config.host, clients, f"--api-keys-file or {API_KEYS}")
    if config.admin_address is not None:
        refuse_exposure("--admin-host", config.admin_host, admins, f"--admin-keys-file or {ADMIN_KEYS}")
    return Access(clients, admins)


def refuse_exposure(option: str, host: str, keys: KeyRing | None, remedy: str) -> None:
    """Without keys a listener is for this machine alone. Raises: ServeError."""
    if keys is None and not is_loopback(host):
        raise ServeError(
            f"{option} {host}: others could reach it and there is no key; give keys with {remedy} "
            "(`seta keys new NAME` makes one), or listen on 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Whether a host name or address, without a port, means this machine."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _ring(option: str, file: Path | None, variable: str) -> KeyRing | None:
    """The keys of a file, or of an environment variable, where commas separate as well as line ends."""
    text = environment.take(variable)
    if file is not None and text is not None:
        raise KeysError(f"{option} and {variable} are both set; give the keys in one place")
    if file is not None:
        return KeyRing(f"{option} {file}", lambda: read_file(file))
    return None if text is None else KeyRing(variable, lambda: text.replace(",", "\n"))
