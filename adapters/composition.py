"""What a new task is composed of: blocks of its own, and blocks that it shares with earlier tasks (eq. 5-8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adapters.anchoring import Anchor, Anchors
from adapters.blocks import Block, by_site
from adapters.examples import Prepared
from adapters.helpful import helpful_parts
from adapters.routed import RoutedModel
from adapters.settings import LearnSettings
from adapters.split_on_share import shared_id, split_on_share


@dataclass(frozen=True)
class Composition:
    """`own`: the blocks of the task's unique expert, possibly none. `parent_of`: shared expert → what it was cut from.

    A parent is still among the experts, under its own id, unless nothing was left of it.
    """

    own: frozenset[Block]
    parent_of: dict[str, str]


def compose(
    model: RoutedModel, data: Prepared, chosen: frozenset[Block], task_names: Sequence[str], settings: LearnSettings
) -> Composition:
    """Split the model's experts where the task that is last in `task_names`, whose examples are `data`, shares them.

    A task that would get nothing to train, because others hold all it chose, is learned without sharing.
    """
    if settings.sharing == "off":
        return Composition(chosen, {})
    if settings.sharing == "helpful":
        shared = helpful_parts(model, data, chosen, settings)
        own = chosen.difference(*shared.values())
    else:
        split = split_on_share(model.blocks(), chosen, settings.share_at_least, settings.keep_at_least)
        shared, own = split.parts, split.own
    if not own and not (settings.sharing == "elastic" and shared):
        return Composition(chosen, {})
    new_task, parent_of = len(task_names) - 1, {}
    for parent, blocks in shared.items():
        new_id = shared_id([*(task_names[task] for task in model.expert_tasks[parent]), task_names[new_task]])
        model.split(parent, new_id, by_site(blocks), new_task)
        parent_of[new_id] = parent
    return Composition(own, parent_of)


def anchor(model: RoutedModel, shared: Sequence[str], settings: LearnSettings) -> Anchors:
    """Snapshots of the shared experts that will learn; the newest task in each of them is the one being learned."""
    anchors = {}
    for expert_id in shared:
        *earlier, new_task = model.expert_tasks[expert_id]
        anchors[expert_id] = Anchor.take(model.experts[expert_id], len(earlier), new_task)
    return Anchors(anchors, settings.anchor_strength)
