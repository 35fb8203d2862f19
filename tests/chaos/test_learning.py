"""`seta learn` killed at every single moment of a call that learns two tasks: it always ends with the same bank."""

import os
from pathlib import Path

import pytest

from tests.adapters.test_resume import kill_at_moments
from tests.tiny import make_tiny_model

ELASTIC = {"gate": "softmax", "sharing": "elastic", "share_at_least": 1, "keep_at_least": 0}


@pytest.mark.parametrize("changes", [{}, ELASTIC], ids=["analytic gate", "softmax gate, shared experts"])
def test_killed_at_every_moment(changes: dict[str, object], tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model")
    (tmp_path / "banks").mkdir()
    found = kill_at_moments(tmp_path / "banks", str(model), count=0, **changes)
    print(f"{len(found)} moments, {sum(one['deaths'] for one in found)} deaths, {os.cpu_count()} cores")
    assert len(found) == found[0]["of"] > 100 and all(one["deaths"] >= 1 for one in found)
    assert [one for one in found if one["differing"]] == []
