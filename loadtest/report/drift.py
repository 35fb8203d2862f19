"""What changed between a stage's first third and its last: the question of a soak."""

from __future__ import annotations

import math

from ..noise import LATENCIES, QUANTILES, SIGMAS, noise_of_blocks
from ..timeline import Slice, merged
from .schema import Drift

MIN_SLICES = 30
PART = 3


def drift(slices: list[Slice]) -> tuple[Drift, ...]:
    """Latencies of the last third against the first's; () for too short a stage."""
    if len(slices) < MIN_SLICES:
        return ()
    size = len(slices) // PART
    first, last = slices[:size], slices[-size:]
    noises = noise_of_blocks(first), noise_of_blocks(last)
    found = []
    for name, of in LATENCIES.items():
        for label, share in QUANTILES.items():
            before, after = (1000 * of(merged(part)).quantile(share) for part in (first, last))
            errors = [noise.get(f"{name}_{label}_ms") for noise in noises]
            if errors[0] is None or errors[1] is None or not before > 0:
                continue
            margin = math.exp(SIGMAS * math.hypot(errors[0], errors[1]))
            is_drift = max(after / before, before / after) > margin
            found.append(
                Drift(statistic=f"{name}_{label}_ms", first=before, last=after, margin=margin, is_beyond_noise=is_drift)
            )
    return tuple(found)
