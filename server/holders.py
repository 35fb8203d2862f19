"""What keeps a generation in memory, told to an administrator whose order had to be refused for it."""

from typing import Any

from .generations import Resident

_MAX_LISTED = 20
_MAX_NAMED = 3
_MAX_ID_CHARS = 60


def holder(resident: Resident, is_serving: bool) -> dict[str, Any]:
    """Why a generation cannot leave memory, and the requests that hold it (ids as in vLLM's answers)."""
    requests = sorted(resident.in_engine.values())
    if is_serving:
        reason = "is in service"
    elif resident.is_pinned:
        reason = "is pinned"
    else:
        reason = f"has {_count(resident.in_flight)} in flight{_named(requests)}"
    return {
        "generation": resident.number,
        "reason": reason,
        "in_flight": resident.in_flight,
        "requests": requests[:_MAX_LISTED],
    }


def _count(requests: int) -> str:
    return "1 request" if requests == 1 else f"{requests} requests"


def _named(requests: list[str]) -> str:
    """The first ids, for a person at a terminal. Clients may choose theirs: none can bring a control character."""
    shown = [ascii(one[:_MAX_ID_CHARS])[1:-1] for one in requests[:_MAX_NAMED]]
    more = [f"{len(requests) - len(shown)} more"] if len(requests) > len(shown) else []
    return f" ({', '.join(shown + more)})" if shown else ""
