"""What a task is composed of, on a model with hand-made experts: no training."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.anchoring import Anchors
from adapters.backbone import Backbone
from adapters.bank import expert_sites
from adapters.blocks import Block
from adapters.composition import Composition, anchor, compose
from adapters.evaluate import TaskScore
from adapters.examples import Prepared
from adapters.publish import Learned, changed_unmeasured
from adapters.routed import RoutedModel
from adapters.settings import LearnSettings
from adapters.split_on_share import shared_id
from adapters.trainer import new_expert
from tests.adapters.learning import raw_bytes

NAMES = ["a", "b", "c"]
SETTINGS = LearnSettings(block_size=32, rank=2, sharing="elastic", share_at_least=2, keep_at_least=1)

NO_DATA = Prepared([], [], [], [])
"""Only `sharing="helpful"` looks at the examples (`test_helpful.py`)."""


def row(*columns: int) -> frozenset[Block]:
    """Blocks of layer 1's down_proj, whose grid is 4 x 8."""
    return frozenset((1, "down_proj", 0, column) for column in columns)


@pytest.fixture(scope="module")
def backbone(tiny_model: str) -> Backbone:
    return Backbone.load(Path(tiny_model))


@pytest.fixture
def model(backbone: Backbone) -> RoutedModel:
    """Task a has columns 0 to 3; b has 4 and 5 and, with a, 6 and 7."""
    model = RoutedModel(backbone, 1, ("down_proj",))
    for expert_id, columns, tasks in (
        ("a.unique", (0, 1, 2, 3), [0]),
        ("b.unique", (4, 5), [1]),
        ("ab", (6, 7), [0, 1]),
    ):
        model.add(expert_id, new_expert(model, row(*columns), SETTINGS), tasks)
        model.freeze(expert_id)
    return model


def compose_with(model: RoutedModel, wanted: frozenset[Block], **changes: object) -> Composition:
    return compose(model, NO_DATA, wanted, NAMES, SETTINGS.model_copy(update=changes))


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


def test_older_tasks_whose_shared_experts_learned_are_named_unless_they_were_measured(model: RoutedModel) -> None:
    """Task c shares with a, and with a and b: both are touched; with a alone, only a is."""
    score = TaskScore(50.0, 100.0, 2)

    def named(wanted: frozenset[Block], **scores: TaskScore) -> list[str]:
        composition = compose_with(model, wanted)
        changed = {*composition.parent_of, *composition.parent_of.values(), "c.unique"}
        return changed_unmeasured(model, Learned("c", 2, changed, {"c": score, **scores}, {}), NAMES)

    assert named(row(2, 3)) == ["a"]
    assert named(row(6, 7), a=score) == ["b"]


CHOICES = st.lists(
    st.frozensets(
        st.tuples(st.integers(1, 2), st.just("down_proj"), st.integers(0, 1), st.integers(0, 3)),
        min_size=1,
        max_size=12,
    ),
    min_size=2,
    max_size=4,
)


@settings(max_examples=15, deadline=None)
@given(choices=CHOICES, sharing=st.sampled_from(["off", "frozen", "elastic"]), share_at_least=st.integers(1, 3))
def test_what_a_task_does_not_share_keeps_its_bytes(
    backbone: Backbone, choices: list[frozenset[Block]], sharing: str, share_at_least: int
) -> None:
    """Isolation (eq. 8) over any sequence of tasks: composing changes no stored byte of any earlier expert's blocks,
    whether it is cut or not; training then reaches only the new expert and, if elastic, what is shared."""
    changes = {"sharing": sharing, "share_at_least": share_at_least}
    current = SETTINGS.model_copy(update=changes)
    model = RoutedModel(backbone, 1, ("down_proj",))
    for task, wanted in enumerate(choices):
        before = rows_of(model)
        names = [f"t{i}" for i in range(task + 1)]
        composition = compose(model, NO_DATA, wanted, names, current)
        assert rows_of(model) == before
        if composition.own:
            expert = new_expert(model, composition.own, current.model_copy(update={"seed": task}))
            for delta in expert.values():
                delta.b.data.normal_(generator=torch.Generator().manual_seed(task))
            dtype = torch.float32 if task % 2 else torch.bfloat16  # an imported expert may be stored in float32
            model.add(f"t{task}.unique", expert, [task], dtype)
        for shared in composition.parent_of if sharing == "elastic" else ():
            model.thaw(shared)
        for expert_id, deltas in model.experts.items():
            learns = all(parameter.requires_grad for delta in deltas.values() for parameter in delta.parameters())
            is_new = expert_id == f"t{task}.unique"
            assert learns == (is_new or (sharing == "elastic" and expert_id in composition.parent_of))
        for expert_id in model.experts:
            model.round_as_stored(expert_id)
            model.freeze(expert_id)


def rows_of(model: RoutedModel) -> Counter[tuple[object, ...]]:
    """Every block's place and the bytes that the bank would keep of it."""
    found: Counter[tuple[object, ...]] = Counter()
    for expert_id in model.experts:
        for site in expert_sites(model.expert_tensors(expert_id)):
            for place, a, b in zip(site.blocks.tolist(), site.a, site.b, strict=True):
                found[site.layer, site.target, *place, raw_bytes(a), raw_bytes(b)] += 1
    return found
