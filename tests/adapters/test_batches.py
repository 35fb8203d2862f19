"""Batches: every example once an epoch, and the same ones after a restart."""

import json
import random

from hypothesis import given
from hypothesis import strategies as st

from adapters.batches import Batches


@given(count=st.integers(1, 20), batch_size=st.integers(1, 8), seed=st.integers(0, 9))
def test_an_epoch_has_each_example_at_most_once(count: int, batch_size: int, seed: int) -> None:
    batches = Batches(count, batch_size, random.Random(seed))
    for _ in range(3):
        epoch = [batches.draw() for _ in range(max(1, count // batch_size))]
        assert {len(batch) for batch in epoch} == {min(count, batch_size)}
        drawn = [index for batch in epoch for index in batch]
        assert len(set(drawn)) == len(drawn) and set(drawn) <= set(range(count))


@given(count=st.integers(1, 20), batch_size=st.integers(1, 8), before=st.integers(0, 9))
def test_it_goes_on_where_it_was(count: int, batch_size: int, before: int) -> None:
    """Through JSON, with numbers drawn by others in between."""
    batches = Batches(count, batch_size, random.Random(3))
    for _ in range(before):
        batches.draw()
        batches.rng.gauss(0, 1)
    again = Batches(count, batch_size, random.Random(99))
    again.restore(json.loads(json.dumps(batches.state())))
    for _ in range(5):
        assert again.draw() == batches.draw()
        assert again.rng.gauss(0, 1) == batches.rng.gauss(0, 1)
