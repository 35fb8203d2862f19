"""The scenarios: which stages each of them is made of.

steady     one load                                   what users see at this load
sweep      one stage per rate (or number of clients)  where latency leaves the ground
hot-add    one load, first alone, then with activations and rollbacks    what a release costs
soak       one load for an hour or more               what drifts
overload   half of the capacity, then a multiple of it, then half again   what breaks, and whether it heals
"""

from __future__ import annotations

from .settings import Settings
from .stages import Stage

PROBE_CLIENTS = 32
PROBE_SECONDS = 10.0
SWEEP_SHARES = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1)
SWEEP_CLIENTS = (1, 2, 4, 8, 16, 32)
NORMAL_SHARE = 0.5


def needs_capacity(settings: Settings) -> bool:
    """Whether rates depend on what the server can do, which is then measured first."""
    if settings.rate:
        return False
    return settings.scenario == "overload" or (
        settings.scenario == "sweep" and settings.arrivals not in (None, "closed")
    )


def probe(settings: Settings) -> Stage:
    """A closed loop of many clients: what it completes a second is the capacity."""
    clients = max(PROBE_CLIENTS, *settings.concurrency)
    stage = Stage.closed("capacity", settings, clients)
    return stage.model_copy(update={"seconds": min(PROBE_SECONDS, settings.stage_seconds)})


def plan(settings: Settings, capacity: float | None = None) -> list[Stage]:
    """The scenario's stages; `capacity` in requests a second, where `needs_capacity`."""
    if settings.scenario == "sweep":
        return _sweep(settings, capacity)
    if settings.scenario == "overload":
        return _overload(settings, capacity or settings.rate[0])
    if settings.scenario == "hot-add":
        return [_one("quiet", settings), _one("hot-add", settings).with_activations(settings.activations)]
    return [_one(settings.scenario, settings)]


def _one(name: str, settings: Settings) -> Stage:
    if settings.rate:
        return Stage.open(name, settings, settings.rate[0])
    return Stage.closed(name, settings, settings.concurrency[0])


def _sweep(settings: Settings, capacity: float | None) -> list[Stage]:
    rates = settings.rate or tuple(round(share * capacity, 3) for share in SWEEP_SHARES if capacity)
    if rates:
        return [Stage.open(f"{rate:g}/s", settings, rate) for rate in rates]
    is_default = "concurrency" not in settings.model_fields_set
    counts = SWEEP_CLIENTS if is_default else settings.concurrency
    return [Stage.closed(f"{count} clients", settings, count) for count in counts]


def _overload(settings: Settings, capacity: float) -> list[Stage]:
    normal, high = NORMAL_SHARE * capacity, settings.overload_factor * capacity
    return [
        Stage.open("before", settings, normal),
        Stage.open("overload", settings, high),
        Stage.open("after", settings, normal),
    ]
