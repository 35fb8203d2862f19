"""Which earlier experts a new task shares by its own loss: experts made from that loss's gradient, and against it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adapters.blocks import Block, Site, by_site
from adapters.composition import compose
from adapters.examples import Prepared, prepare
from adapters.gradient_init import cut
from adapters.helpful import LEAST_GAIN, composed_nll, helpful_parts
from adapters.learn import learn
from adapters.learner import Learner, open_learner
from adapters.nll import answer_nll
from adapters.routed import RoutedModel
from adapters.sparse_lora import SparseDelta
from adapters.split_on_share import shared_id
from tests.adapters.learning import QUICK, TRAIN, expert_rows

SETTINGS = QUICK.model_copy(update={"sharing": "helpful", "share_at_least": 2, "keep_at_least": 0})
BATCH = list(range(8))
TOP = frozenset((3, "down_proj", row, column) for row in (0, 1) for column in range(8))
BOTTOM = frozenset((3, "down_proj", row, column) for row in (2, 3) for column in range(8))


@pytest.fixture(scope="module")
def learner(few_general_prompts: None, tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Learner:
    return open_learner(tmp_path_factory.mktemp("empty") / "bank", tiny_model, SETTINGS)


@pytest.fixture(scope="module")
def data(learner: Learner) -> Prepared:
    return prepare(learner.backbone, TRAIN["colours"], 1, learner.gate, 1024, "test")[0]


@pytest.fixture(scope="module")
def gradient(learner: Learner, data: Prepared) -> Tensor:
    """Of the mean NLL in the last layer's down_proj, all training examples."""
    everything = range(len(data))
    with learner.model.base_gradients() as weights:
        nowhere = [torch.zeros(len(data.trunk[i]), 0) for i in everything]
        answer_nll(learner.model, data, everything, nowhere).backward()
        found = weights[3, "down_proj"].grad
    assert found is not None
    return found.float() / float(found.float().norm())


@pytest.fixture
def model(learner: Learner) -> Iterator[RoutedModel]:
    yield learner.model
    for expert_id in list(learner.model.experts):
        learner.model.remove(expert_id)


def add(model: RoutedModel, expert_id: str, blocks: frozenset[Block], change: Tensor, task: int) -> None:
    """An expert whose delta is `change` on these blocks: rank 32 on blocks of 32 is no limit."""
    expert: dict[Site, SparseDelta] = {}
    for site, places in by_site(blocks).items():
        eye = torch.eye(32).expand(len(places), 32, 32).clone()
        expert[site] = SparseDelta(places, eye, cut(change, places, 32), tuple(change.shape))
    model.add(expert_id, expert, [task])
    model.freeze(expert_id)


def parts_of(model: RoutedModel, data: Prepared, wanted: frozenset[Block]) -> dict[str, frozenset[Block]]:
    return helpful_parts(model, data, wanted, SETTINGS)


def test_experts_that_lower_the_loss_are_shared_and_those_that_raise_it_are_not(
    model: RoutedModel, data: Prepared, gradient: Tensor
) -> None:
    add(model, "against.unique", TOP, 20 * gradient, 0)
    add(model, "along.unique", TOP | BOTTOM, -20 * gradient, 1)
    wanted = TOP | frozenset({(3, "down_proj", 2, 0), (3, "down_proj", 2, 1)})
    assert parts_of(model, data, wanted) == {"along.unique": wanted}
    model.remove("along.unique")
    assert parts_of(model, data, wanted) == {}


def test_what_one_expert_covers_is_not_asked_of_another(model: RoutedModel, data: Prepared, gradient: Tensor) -> None:
    """Of two that help on the same blocks the better one is shared; the other where it alone has some."""
    add(model, "little.unique", TOP | BOTTOM, -gradient, 0)
    add(model, "much.unique", TOP, -5 * gradient, 1)
    found = parts_of(model, data, TOP | BOTTOM)
    assert found["much.unique"] == TOP
    assert found.get("little.unique", BOTTOM) == BOTTOM


def test_a_gain_that_is_too_small_is_none_and_said(
    model: RoutedModel, data: Prepared, gradient: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    add(model, "hardly.unique", TOP, -0.02 * gradient, 0)
    batches = [BATCH]
    before, after = (composed_nll(model, data, batches, parts) for parts in ({}, {"hardly.unique": TOP}))
    assert (1 - LEAST_GAIN) * before < after < before
    assert parts_of(model, data, TOP) == {}
    assert "no earlier expert helps" in capsys.readouterr().err


def test_trying_changes_nothing(model: RoutedModel, data: Prepared, gradient: Tensor) -> None:
    """And the loss of no parts is the base model's; that of all of an expert's blocks is the expert's."""
    add(model, "along.unique", TOP, -20 * gradient, 0)
    before = model.blocks()
    with torch.no_grad():
        length = sum(len(data.tokens[i].answer) for i in BATCH)
        weights = [[torch.full((len(data.trunk[i]), 1), float(on)) for i in BATCH] for on in (False, True)]
        base, whole = (float(answer_nll(model, data, BATCH, found)) / length for found in weights)
    assert composed_nll(model, data, [BATCH], {}) == pytest.approx(base, rel=1e-6)
    assert composed_nll(model, data, [BATCH], {"along.unique": TOP}) == pytest.approx(whole, rel=1e-6)
    assert whole < base
    assert model.blocks() == before and model.expert_tasks == {"along.unique": [0]}


def test_a_task_composes_what_helps_and_has_deltas_of_its_own_elsewhere(
    model: RoutedModel, data: Prepared, gradient: Tensor
) -> None:
    """Also where an expert that does not help holds the blocks."""
    add(model, "a.unique", BOTTOM, 20 * gradient, 0)
    add(model, "b.unique", TOP, -20 * gradient, 1)
    composition = compose(model, data, TOP | BOTTOM, ["a", "b", "c"], SETTINGS)
    shared = shared_id(["b", "c"])
    assert composition.own == BOTTOM and composition.parent_of == {shared: "b.unique"}
    assert model.expert_tasks == {"a.unique": [0], shared: [1, 2]}
    nothing_left = compose(model, data, TOP, ["a", "b", "c", "d"], SETTINGS)
    assert nothing_left.own == TOP and nothing_left.parent_of == {}, "it would get nothing to train"


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
