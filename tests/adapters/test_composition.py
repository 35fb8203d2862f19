"""What a task is composed of, on a model with hand-made experts: no training."""

from pathlib import Path

import pytest

from adapters.anchoring import Anchors
from adapters.backbone import Backbone
from adapters.blocks import Block
from adapters.composition import Composition, anchor, compose
from adapters.routed import RoutedModel
from adapters.settings import LearnSettings
from adapters.split_on_share import shared_id
from adapters.trainer import new_expert

NAMES = ["a", "b", "c"]
SETTINGS = LearnSettings(block_size=32, rank=2, sharing="elastic", share_at_least=2, keep_at_least=1)


def row(*columns: int) -> frozenset[Block]:
    """Blocks of layer 1's down_proj, whose grid is 4 x 8."""
    return frozenset((1, "down_proj", 0, column) for column in columns)


@pytest.fixture
def model(tiny_model: str) -> RoutedModel:
    """Task a has columns 0 to 3; b has 4 and 5 and, with a, 6 and 7."""
    model = RoutedModel(Backbone.load(Path(tiny_model)), 1, ("down_proj",))
    for expert_id, columns, tasks in (
        ("a.unique", (0, 1, 2, 3), [0]),
        ("b.unique", (4, 5), [1]),
        ("ab", (6, 7), [0, 1]),
    ):
        model.add(expert_id, new_expert(model, row(*columns), SETTINGS), tasks)
        model.freeze(expert_id)
    return model


def compose_with(model: RoutedModel, wanted: frozenset[Block], **changes: object) -> Composition:
    return compose(model, wanted, NAMES, SETTINGS.model_copy(update=changes))


def test_without_sharing_a_task_has_all_that_it_chose(model: RoutedModel) -> None:
    before = model.blocks()
    assert compose_with(model, row(0, 1, 2), sharing="off") == Composition(row(0, 1, 2), {})
    assert model.blocks() == before


def test_experts_are_cut_where_the_task_shares_them(model: RoutedModel) -> None:
    wanted = row(2, 3, 4, 6, 7) | {(1, "down_proj", 1, 0)}
    composition = compose_with(model, wanted)
    of_a, of_ab = shared_id(["a", "c"]), shared_id(["a", "b", "c"])
    assert composition == Composition(frozenset({(1, "down_proj", 1, 0)}), {of_a: "a.unique", of_ab: "ab"})
    assert model.blocks() == {"a.unique": row(0, 1), "b.unique": row(4, 5), of_a: row(2, 3), of_ab: row(6, 7)}
    assert model.expert_tasks == {"a.unique": [0], "b.unique": [1], of_a: [0, 2], of_ab: [0, 1, 2]}
    assert model.experts.keys() == model.expert_tasks.keys() == model.dtypes.keys()


def test_anchors_know_how_many_earlier_tasks_rely_on_an_expert(model: RoutedModel) -> None:
    """omega = 1/2 for what one of the two earlier tasks has, 1 for what both have (eq. 10)."""
    composition = compose_with(model, row(2, 3, 6, 7))
    anchors: Anchors = anchor(model, list(composition.parent_of), SETTINGS)
    assert {i: a.importance for i, a in anchors.by_expert.items()} == {
        shared_id(["a", "c"]): 0.5,
        shared_id(["a", "b", "c"]): 1.0,
    }


def test_a_frozen_composition_that_leaves_nothing_to_train_is_not_made(model: RoutedModel) -> None:
    before, wanted = model.blocks(), row(0, 1, 2)
    assert compose_with(model, wanted, sharing="frozen") == Composition(wanted, {})
    assert compose_with(model, wanted, share_at_least=9) == Composition(wanted, {}), "nothing is shared, nothing free"
    assert model.blocks() == before


def test_an_elastic_one_may_be_of_shared_experts_alone(model: RoutedModel) -> None:
    composition = compose_with(model, row(0, 1, 2, 3))
    assert composition == Composition(frozenset(), {shared_id(["a", "c"]): "a.unique"})
    assert "a.unique" not in model.experts
