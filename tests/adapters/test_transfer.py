"""Which earlier experts a new task shares by its own loss: experts made from that loss's gradient, and against it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters.blocks import Block, Site, by_site
from adapters.composition import compose
from adapters.examples import Prepared, prepare
from adapters.learn import learn
from adapters.learner import Learner, open_learner
from adapters.nll import answer_nll
from adapters.routed import RoutedModel
from adapters.sparse_lora import SparseDelta
from adapters.split_on_share import shared_id
from adapters.transfer import Piece, composed_nll, helpful_parts, most_helpful, pieces, pulls
from tests.adapters.learning import QUICK, TRAIN, expert_rows

SETTINGS = QUICK.model_copy(update={"sharing": "helpful", "share_at_least": 2, "keep_at_least": 0})
BATCH = list(range(8))


def layer_blocks(layer: int) -> frozenset[Block]:
    """All of a down_proj, whose grid is 4 x 8."""
    return frozenset((layer, "down_proj", row, column) for row in range(4) for column in range(8))


SECOND, THIRD = layer_blocks(2), layer_blocks(3)


@pytest.fixture(scope="module")
def learner(few_general_prompts: None, tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Learner:
    return open_learner(tmp_path_factory.mktemp("empty") / "bank", tiny_model, SETTINGS)


@pytest.fixture(scope="module")
def data(learner: Learner) -> Prepared:
    return prepare(learner.backbone, TRAIN["colours"], 1, learner.gate, 1024, "test")[0]


@pytest.fixture(scope="module")
def gradient(learner: Learner, data: Prepared) -> dict[Site, Tensor]:
    """Of the mean NLL in the last two layers' down_proj, all training examples; each of length 1."""
    everything = list(range(len(data)))
    with learner.model.base_gradients() as weights:
        nowhere = [torch.zeros(len(data.trunk[i]), 0) for i in everything]
        answer_nll(learner.model, data, everything, nowhere).backward()
        found = {site: weight.grad.float() for site, weight in weights.items() if weight.grad is not None}
    return {site: found[site] / found[site].norm() for site in ((2, "down_proj"), (3, "down_proj"))}


@pytest.fixture
def model(learner: Learner) -> Iterator[RoutedModel]:
    yield learner.model
    for expert_id in list(learner.model.experts):
        learner.model.remove(expert_id)


def add(model: RoutedModel, expert_id: str, blocks: frozenset[Block], along: Mapping[Site, Tensor], by: float) -> None:
    """An expert whose delta is `by` times `along` on these blocks: rank 32 on blocks of 32 is no limit."""
    expert: dict[Site, SparseDelta] = {}
    for site, places in by_site(blocks).items():
        change = by * along[site]
        cut = torch.stack([change[32 * row : 32 * row + 32, 32 * column : 32 * column + 32] for row, column in places])
        eye = torch.eye(32).expand(len(places), 32, 32).clone()
        expert[site] = SparseDelta(places, eye, cut, (change.shape[0], change.shape[1]))
    model.add(expert_id, expert, [len(model.experts)])
    model.freeze(expert_id)


def parts_of(model: RoutedModel, data: Prepared, wanted: frozenset[Block] = SECOND | THIRD) -> dict[str, Any]:
    return helpful_parts(model, data, wanted, SETTINGS)


def test_experts_that_lower_the_loss_are_shared_and_those_that_raise_it_are_not(
    model: RoutedModel, data: Prepared, gradient: dict[Site, Tensor]
) -> None:
    add(model, "against.unique", THIRD, gradient, 5)
    assert parts_of(model, data) == {}
    add(model, "along.unique", THIRD, gradient, -5)
    assert parts_of(model, data) == {"along.unique": THIRD}


def test_a_task_has_half_of_what_it_wants_to_itself(
    model: RoutedModel, data: Prepared, gradient: dict[Site, Tensor]
) -> None:
    """However much helps; and a layer has one helper."""
    add(model, "both.unique", SECOND | THIRD, gradient, -2)
    found = parts_of(model, data)
    assert found in ({"both.unique": SECOND}, {"both.unique": THIRD})
    assert parts_of(model, data, SECOND) == {}, "the piece is more than half"
    add(model, "little.unique", SECOND | THIRD, gradient, -0.1)
    assert parts_of(model, data) == found


def test_what_is_too_much_together_is_tried_in_part(
    model: RoutedModel, data: Prepared, gradient: dict[Site, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To first order both help; the loss that is computed has the last word."""
    monkeypatch.setattr("adapters.transfer.MOST_SHARED", 1.0)
    add(model, "two.unique", SECOND, gradient, -1)
    add(model, "three.unique", THIRD, gradient, -2)
    assert parts_of(model, data) == {"two.unique": SECOND, "three.unique": THIRD}
    best = most_helpful(
        found := pieces(model.blocks(), SECOND | THIRD, SETTINGS), pulls(model, data, [BATCH], found), 64
    )[0]
    monkeypatch.setattr(
        "adapters.transfer.composed_nll", lambda _m, _d, _b, parts: {0: 2.0, 1: 1.5, 2: 2.5}[len(parts)]
    )
    assert parts_of(model, data) == {best.expert_id: best.blocks}
    monkeypatch.setattr("adapters.transfer.composed_nll", lambda _m, _d, _b, parts: float(len(parts)))
    assert parts_of(model, data) == {}


def test_pulls_are_the_losses_slope(model: RoutedModel, data: Prepared, gradient: dict[Site, Tensor]) -> None:
    """Along a small delta the loss changes by as much as its pull says."""
    add(model, "small.unique", THIRD, gradient, -0.2)
    found = pieces(model.blocks(), THIRD, SETTINGS)
    base, composed = (composed_nll(model, data, [BATCH], parts) for parts in ({}, {"small.unique": THIRD}))
    assert pulls(model, data, [BATCH], found)[0] == pytest.approx(composed - base, rel=0.2)


def test_each_layer_takes_its_best_piece_and_the_best_layers_come_first() -> None:
    """By hand: layer 1 asks a (-2) and b (-3); layer 2 only c (-4), two blocks; layer 3 d, which does harm."""

    def piece(name: str, layer: int, count: int) -> Piece:
        return Piece(name, frozenset((layer, "v_proj", 0, column) for column in range(count)))

    a, b, c, d = piece("a", 1, 1), piece("b", 1, 1), piece("c", 2, 2), piece("d", 3, 1)
    pull = [-2.0, -3.0, -4.0, 0.5]
    assert most_helpful([a, b, c, d], pull, 9) == [c, b]
    assert most_helpful([a, b, c, d], pull, 2) == [c]
    assert most_helpful([a, b, c, d], pull, 1) == [b], "c is larger than what may be shared"


def test_trying_changes_nothing(model: RoutedModel, data: Prepared, gradient: dict[Site, Tensor]) -> None:
    """And the loss of no parts is the base model's; that of all of an expert's blocks is the expert's."""
    add(model, "along.unique", THIRD, gradient, -5)
    before = model.blocks()
    with torch.no_grad():
        length = sum(len(data.tokens[i].answer) for i in BATCH)
        weights = [[torch.full((len(data.trunk[i]), 1), float(on)) for i in BATCH] for on in (False, True)]
        base, whole = (float(answer_nll(model, data, BATCH, found)) / length for found in weights)
    assert composed_nll(model, data, [BATCH], {}) == pytest.approx(base, rel=1e-6)
    assert composed_nll(model, data, [BATCH], {"along.unique": THIRD}) == pytest.approx(whole, rel=1e-6)
    assert whole < base
    parts_of(model, data)
    assert model.blocks() == before and model.expert_tasks == {"along.unique": [0]}
    for routed in model.sites.values():
        assert routed.base.weight.grad is None and not routed.base.weight.requires_grad


def test_a_task_composes_what_helps_and_has_deltas_of_its_own_elsewhere(
    model: RoutedModel, data: Prepared, gradient: dict[Site, Tensor]
) -> None:
    """Also where an expert that does not help holds the blocks."""
    add(model, "a.unique", SECOND, gradient, 5)
    add(model, "b.unique", THIRD, gradient, -5)
    composition = compose(model, data, SECOND | THIRD, ["a", "b", "c"], SETTINGS)
    shared = shared_id(["b", "c"])
    assert composition.own == SECOND and composition.parent_of == {shared: "b.unique"}
    assert model.expert_tasks == {"a.unique": [0], shared: [1, 2]}


def test_a_task_learned_beside_one_that_helps_shares_its_expert(
    few_general_prompts: None, tiny_model: str, tmp_path: Path
) -> None:
    """The same examples once more, and more blocks: what the first task learned is composed, byte for byte."""
    settings = SETTINGS.model_copy(update={"steps": 6, "learning_rate": 2e-2})
    learner = open_learner(tmp_path / "bank", tiny_model, settings)
    learn(learner, "colours", TRAIN["colours"], TRAIN["colours"])
    learner.settings = settings.model_copy(update={"density": 0.6, "trunk_layers": learner.settings.trunk_layers})
    learn(learner, "again", TRAIN["colours"], TRAIN["colours"])
    bank, manifest = learner.bank, learner.bank.manifest()
    assert bank.verify() == []
    assert [(expert.kind, expert.tasks) for expert in manifest.experts] == [
        ("shared", ("colours", "again")),
        ("unique", ("again",)),
    ]
    shared = expert_rows(bank, manifest, manifest.experts[0].id)
    assert shared == expert_rows(bank, bank.manifest(1), "colours.unique")
