"""Choosing blocks and fitting experts on the tiny model, piece by piece."""

import math
from collections.abc import Mapping, Sequence

import pytest
import torch

from adapters import trainer
from adapters.anchoring import Anchor, Anchors
from adapters.composition import anchor
from adapters.examples import Prepared, prepare
from adapters.fit import Fitting, penalties
from adapters.gate_learning import Fitted
from adapters.learner import Learner, open_learner
from adapters.score_history import ScoreHistory
from adapters.sparse_lora import SparseDelta
from adapters.trainer import within_budget
from tests.adapters.learning import QUICK, TRAIN

pytestmark = pytest.mark.usefixtures("few_general_prompts")


@pytest.fixture(scope="module")
def learner(few_general_prompts: None, tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Learner:
    """A bank without tasks, opened."""
    return open_learner(tmp_path_factory.mktemp("empty") / "bank", tiny_model, QUICK)


def test_a_batch_that_the_gate_sends_nowhere_is_no_error(learner: Learner) -> None:
    """Training goes on when a batch has no token for the expert; nothing changes the expert then."""
    data, _ = prepare(learner.backbone, TRAIN["colours"], 1, learner.gate, 1024, "test")
    data.weights = [torch.zeros(len(trunk), 1) for trunk in data.trunk]
    scored = trainer.score_blocks(learner.model, data, learner.settings)
    choice = trainer.choose_blocks(learner.model, scored, learner.settings, ScoreHistory())
    expert = trainer.new_expert(learner.model, choice.blocks, learner.settings)
    learner.model.add("nowhere", expert, [0])
    before = [parameter.detach().clone() for delta in expert.values() for parameter in delta.parameters()]
    Fitting(learner.model, ["nowhere"], data, learner.settings, Anchors({}, 0.1), Fitted(learner.gate)).run()
    after = [parameter for delta in expert.values() for parameter in delta.parameters()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_scoring_blocks_leaves_the_base_weights_and_their_gradients_alone(learner: Learner) -> None:
    data, _ = prepare(learner.backbone, TRAIN["colours"], 1, learner.gate, 1024, "test")
    weights = {site: routed.base.weight for site, routed in learner.model.sites.items()}
    before = {site: weight.clone() for site, weight in weights.items()}
    scored = trainer.score_blocks(learner.model, data, learner.settings)
    choice = trainer.choose_blocks(learner.model, scored, learner.settings, ScoreHistory())
    for site, weight in weights.items():
        assert torch.equal(weight, before[site]) and weight.grad is None and not weight.requires_grad
    assert 10 <= choice.warm_up_steps <= 100
    assert choice.scores.keys() == weights.keys()
    grids = {(1, "v_proj"): (2, 4), (1, "o_proj"): (4, 4), (1, "down_proj"): (4, 8)}
    total = 3 * sum(rows * columns for rows, columns in grids.values())
    assert len(choice.blocks) == int(0.3 * total)


def test_a_new_expert_starts_where_its_seed_says(learner: Learner) -> None:
    blocks = [(1, "v_proj", 0, 1), (1, "v_proj", 1, 2)]
    starts = [
        trainer.new_expert(learner.model, blocks, QUICK.model_copy(update={"seed": seed}))[1, "v_proj"]
        for seed in (0, 0, 1)
    ]
    assert torch.equal(starts[0].a, starts[1].a)
    assert not torch.equal(starts[0].a, starts[2].a)
    assert all(not start.dense().any() for start in starts)


def test_the_adaptive_budget_goes_on_where_the_rate_of_new_blocks_moves() -> None:
    """Every block under the quota but the last is held: then come two windows that are new."""
    scores = {(1, "v_proj"): torch.randn(8, 8, generator=torch.Generator().manual_seed(0))}
    plain = within_budget(scores, frozenset(), QUICK)
    assert len(plain) == int(0.3 * 64)
    adaptive = within_budget(scores, frozenset(plain[:-1]), QUICK.model_copy(update={"adaptive_budget": True}))
    assert adaptive[: len(plain)] == plain and len(adaptive) == len(plain) + 2 * (len(plain) // 8)


def test_blocks_are_chosen_away_from_earlier_tasks_if_asked(learner: Learner) -> None:
    data, _ = prepare(learner.backbone, TRAIN["colours"], 1, learner.gate, 1024, "test")
    scored = trainer.score_blocks(learner.model, data, QUICK)
    first = trainer.choose_blocks(learner.model, scored, QUICK, ScoreHistory())
    history = ScoreHistory().with_task({site: 2 * grid.flip(1) for site, grid in first.scores.items()})
    apart = trainer.choose_blocks(learner.model, scored, QUICK.model_copy(update={"divergence": True}), history)
    assert apart.blocks != first.blocks


def test_a_strong_anchor_holds_a_shared_expert_where_it_was(learner: Learner) -> None:
    data, _ = prepare(learner.backbone, TRAIN["colours"], 1, learner.gate, 1024, "test")
    data.weights = [torch.ones(len(trunk), 2) for trunk in data.trunk]

    def drift(strength: float, **changes: object) -> float:
        settings = QUICK.model_copy(update={"steps": 4, "anchor_strength": strength, **changes})
        expert = trainer.new_expert(learner.model, [(1, "v_proj", 0, column) for column in range(4)], settings)
        for delta in expert.values():
            delta.b.data.fill_(0.01)
        learner.model.add("shared", expert, [0, 1])
        anchors = anchor(learner.model, ["shared"], settings)
        Fitting(learner.model, ["shared"], data, settings, anchors, Fitted(learner.gate)).run()
        return float(anchors.by_expert["shared"].squared_drift().detach())

    loose = drift(0.0)
    assert 0 < drift(1000.0) < loose / 4
    assert drift(1000.0, anchor_weights=False) == loose


class Spy(Fitted):
    """A gate that adds 0.25 to the loss and remembers the strengths it was told."""

    def penalties(self, data: Prepared, batch: Sequence[int], strengths: Mapping[str, float]) -> list[torch.Tensor]:
        self.told = dict(strengths)
        return [torch.tensor(0.25)]


@pytest.mark.parametrize("anchor_weights", [False, True])
@pytest.mark.parametrize("anchor_routes", [False, True])
def test_the_objective_is_the_sum_of_what_is_switched_on(
    learner: Learner, anchor_weights: bool, anchor_routes: bool
) -> None:
    """Eq. 13. A rank-1 block whose product moved from norm 5 to 10: L_reg = lambda 5², lambda = 0.1 (1 + tanh 1)."""
    a, b = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[1.0], [0.0]]])
    delta = SparseDelta(torch.tensor([[0, 0]], dtype=torch.int32), a, b, (2, 2))
    anchors = Anchors({"shared": Anchor.take({(1, "v_proj"): delta}, 1, 1)}, 0.1)
    with torch.no_grad():
        delta.b.mul_(2)
    strength = 0.1 * (1 + math.tanh(1))
    settings = QUICK.model_copy(update={"anchor_weights": anchor_weights, "anchor_routes": anchor_routes})
    gate, data = Spy(learner.gate), Prepared([], [], [], [])  # type: ignore[arg-type]
    terms = penalties(anchors, gate, data, [], settings)
    assert float(torch.stack(terms).sum().detach()) == pytest.approx(
        0.25 + (25 * strength if anchor_weights else 0), rel=1e-5
    )
    assert gate.told == pytest.approx({"shared": strength} if anchor_routes else {})
