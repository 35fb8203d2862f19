"""How far a stage's numbers would move if the same stage were run again, as far as the stage itself can tell.

The stage is cut into blocks of time, blocks are drawn with replacement (block bootstrap, Künsch 1989), and each
statistic is computed again from each draw. The standard deviation of its logarithm is its relative noise. Blocks, not
requests: requests close to each other in time share the server's state and are not independent. What changes between
two runs but not within one (another machine, a neighbour's load, a colder cache) is not in it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .statistics import Histogram, middle
from .timeline import Slice, Timeline

BLOCKS = 20
MIN_BLOCKS = 5
DRAWS = 400
SIGMAS = 3.0  # a difference counts from three standard errors on
QUANTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}
LATENCIES: dict[str, Callable[[Slice], Histogram]] = {
    "ttft": lambda part: part.ttft,
    "itl": lambda part: part.itl,
    "e2e": lambda part: part.e2e,
}
RATES: dict[str, Callable[[Slice], float]] = {
    "tokens_per_second": lambda part: part.tokens,
    "requests_per_second": lambda part: part.completed,
    "good_per_second": lambda part: part.good,
}
Array = NDArray[np.float64]


def relative_noise(timeline: Timeline) -> dict[str, float]:
    """Relative standard error by statistic: `ttft_p50_ms` …, `tokens_per_second` …; {} for too short a stage."""
    return noise_of_blocks(timeline.blocks(BLOCKS))


def noise_of_blocks(blocks: list[Slice], seed: int = 0) -> dict[str, float]:
    """The same for stretches of time that are long enough to be independent of each other."""
    if len(blocks) < MIN_BLOCKS:
        return {}
    draws = np.random.default_rng(seed).multinomial(len(blocks), [1 / len(blocks)] * len(blocks), size=DRAWS)
    noise = {name: _spread(draws @ np.array([rate(block) for block in blocks])) for name, rate in RATES.items()}
    for name, of in LATENCIES.items():
        histograms = [of(block) for block in blocks]
        for label, share in QUANTILES.items():
            noise[f"{name}_{label}_ms"] = _spread(_quantiles(histograms, draws, share))
    return {name: value for name, value in noise.items() if np.isfinite(value)}


def _quantiles(histograms: list[Histogram], draws: NDArray[np.int64], share: float) -> Array:
    """[draws] the quantile of each draw of blocks; NaN for a draw without any value."""
    indices = sorted(set().union(*(histogram.counts for histogram in histograms)))
    if not indices:
        return np.full(len(draws), np.nan)
    counts = np.array([[histogram.counts[index] for index in indices] for histogram in histograms])
    below = (draws @ counts).cumsum(axis=1)
    place = np.ceil(share * (below[:, -1] - 1)) + 1
    values = np.array([middle(index) for index in indices])[(below >= place[:, None]).argmax(axis=1)]
    return np.where(below[:, -1] > 0, values, np.nan)


def _spread(values: Array) -> float:
    """Standard deviation of the logarithm; NaN unless every value is positive."""
    return float(np.log(values).std(ddof=1)) if np.all(values > 0) else float("nan")
