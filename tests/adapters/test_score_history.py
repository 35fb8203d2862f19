"""Divergence from earlier tasks' scores (eq. 4), and how the bank keeps those."""

import math

import pytest
import torch
from torch import Tensor

from adapters.bank import BankCorrupt
from adapters.score_history import ScoreHistory
from tests.adapters.test_stored_gate import manifest_of

SITE = (1, "v_proj")


def grid(*values: float) -> dict[tuple[int, str], Tensor]:
    return {SITE: torch.tensor([values])}


def test_divergence_of_a_hand_case() -> None:
    """Two tasks scored (2, -1) and (0, 1): mean (1, 0). The third's (1.5, -2) is (0.5, 2) away from it."""
    history = ScoreHistory().with_task(grid(2.0, -1.0)).with_task(grid(0.0, 1.0))
    own = 1 / (1 + math.log(3))
    expected = [own * 1.5 + (1 - own) * 0.5, own * -2.0 + (1 - own) * 2.0]
    torch.testing.assert_close(history.diverging(grid(1.5, -2.0))[SITE], torch.tensor([expected]))


def test_the_first_tasks_scores_are_its_own() -> None:
    scores = grid(0.5, -3.0)
    assert torch.equal(ScoreHistory().diverging(scores)[SITE], scores[SITE])


def test_the_mean_is_that_of_all_tasks() -> None:
    tasks = [torch.randn(3, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(7)]
    history = ScoreHistory()
    for scores in tasks:
        history = history.with_task({SITE: scores})
    assert history.count == 7 and history.mean is not None
    torch.testing.assert_close(history.mean[SITE], torch.stack(tasks).mean(0))


def stored() -> dict[str, Tensor]:
    """Layers 1 to 3 of the factory's base, V of 8 x 16 in blocks of 4."""
    history = ScoreHistory()
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        history = history.with_task({(layer, "v_proj"): torch.randn(2, 4, generator=generator) for layer in (1, 2, 3)})
    return history.tensors()


def test_what_is_stored_is_read_back() -> None:
    tensors = stored()
    history = ScoreHistory.of(manifest_of(2), tensors)
    assert history.count == 2
    again = history.tensors()
    assert again.keys() == tensors.keys() and all(torch.equal(again[name], tensors[name]) for name in tensors)


def test_a_bank_without_scores_has_no_history() -> None:
    assert ScoreHistory.of(manifest_of(2), None) == ScoreHistory()


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("layers.2.v_proj", None),
        ("layers.2.v_proj", torch.zeros(2, 5)),
        ("layers.2.v_proj", torch.zeros(2, 4).double()),
        ("layers.0.v_proj", torch.zeros(2, 4)),
        ("count", None),
        ("count", torch.zeros(1)),
        ("count", torch.ones(2)),
    ],
)
def test_scores_that_do_not_fit_are_refused(name: str, tensor: Tensor | None) -> None:
    tensors = {key: value for key, value in stored().items() if key != name}
    with pytest.raises(BankCorrupt, match=rf"scores of generation 2: {name} "):
        ScoreHistory.of(manifest_of(2), tensors if tensor is None else tensors | {name: tensor})
