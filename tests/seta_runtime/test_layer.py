"""A projection with the routed update in it: tasks together and task by task are the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seta_runtime import layer
from seta_runtime.layer import OutputSlice, RoutedProjection
from seta_runtime.ops.cpu import Together
from seta_runtime.ops.experts import ProjectionExperts, pack
from seta_runtime.ops.paired import PairedExperts, product
from seta_runtime.ops.task_rows import TaskRows
from seta_runtime.state import RoutedGroup, StepState
from tests.seta_runtime.random_experts import CPU, packed_in_bfloat16, random_experts, random_gate, random_generation

SHAPE = (24, 40)
TASKS = torch.tensor([1, 0, -1, 2, 0, 2])
"""Of each token of the step; -1 for the base model."""


def forward(projections: dict[tuple[int, str], ProjectionExperts], x: Tensor, is_together: bool) -> Tensor:
    """Two generations, of which the second one has tokens 6 to 8 and its tasks the other way round."""
    state = StepState([])
    for number, task_of in enumerate((TASKS, torch.tensor([-1] * 6 + [2, 1, 0]))):
        gate = random_gate(8, 4, 3)
        generation = replace(random_generation(number, gate, torch.eye(3)), projections=projections)
        rows = (task_of >= 0).nonzero().flatten()
        together = Together.of(rows, task_of[rows]) if is_together else None
        assert (together is not None) == is_together
        for task in range(3):
            mine = (task_of == task).nonzero().flatten()
            state.groups.append(RoutedGroup(generation, mine, task, None, together))
    base = nn.Linear(SHAPE[1], SHAPE[0], bias=False)
    nn.init.ones_(base.weight)
    return RoutedProjection(base, state, [OutputSlice(0, "v_proj", 0, SHAPE[0])])(x).detach()


@pytest.mark.parametrize("counts", [[15, 15, 15], [15, 0, 15]])
def test_tasks_together_and_task_by_task_are_the_same(counts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    experts = random_experts(SHAPE, counts, [8, 8, 8])
    packed = pack(experts, [[0], [1], [2]], SHAPE, torch.float32, CPU, with_mixtures=False)
    calls: list[Together] = []
    original = layer.add_together

    def counting(y: Tensor, x: Tensor, deltas: Tensor, group: Together) -> None:
        calls.append(group)
        original(y, x, deltas, group)

    monkeypatch.setattr(layer, "add_together", counting)
    x = torch.randn(9, SHAPE[1])
    projections = {(0, "v_proj"): packed}
    one_by_one = forward(projections, x, is_together=False)
    assert not calls
    torch.testing.assert_close(forward(projections, x, is_together=True), one_by_one, rtol=0, atol=1e-5)
    assert len(calls) == (2 if all(counts) else 0), "once a generation, where every task has its delta"
    assert torch.equal(one_by_one[2], nn.functional.linear(x, torch.ones(SHAPE))[2]), "the base model's token"


@pytest.mark.skipif(product() is None, reason="the processor or the compiler is missing")
def test_the_compiled_product_is_called_once_a_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (64, 96)
    experts = random_experts(shape, [4, 6, 3], [8, 16, 8], 32)
    packed = packed_in_bfloat16(experts, [[0], [1], [0, 2]], shape)
    state, calls = StepState([]), []
    for number, task_of in enumerate((TASKS, torch.tensor([-1] * 6 + [2, 1, 0]))):
        projections = {(0, "v_proj"): packed}
        generation = replace(random_generation(number, random_gate(8, 4, 3), torch.eye(3)), projections=projections)
        groups = [(task, (task_of == task).nonzero().flatten()) for task in range(3)]
        by_task = TaskRows.of(groups, 9)
        state.groups += [RoutedGroup(generation, rows, task, None, by_task=by_task) for task, rows in groups]
    original = PairedExperts.add

    def counting(self: PairedExperts, y: Tensor, x: Tensor, tokens: TaskRows) -> None:
        calls.append(tokens)
        original(self, y, x, tokens)

    monkeypatch.setattr(PairedExperts, "add", counting)
    base, x = nn.Linear(shape[1], shape[0], bias=False).bfloat16(), torch.randn(9, shape[1]).bfloat16()
    got, expected = RoutedProjection(base, state, [OutputSlice(0, "v_proj", 0, shape[0])])(x), base(x).float()
    for token, task in enumerate([1, 0, -1, 2, 0, 2, 2, 1, 0]):
        for expert in [] if task < 0 else [[0], [1], [0, 2]][task]:
            mine = experts[expert]
            assert mine is not None
            expected[token] += mine.dense(shape) @ x[token].float()
    torch.testing.assert_close(got.float(), expected, rtol=0.05, atol=0.05)
    assert torch.equal(got[2], base(x)[2]) and len(calls) == 2


@pytest.mark.parametrize("rows", [[2, 3, 4, 5], [0], [8], [1, 2, 4], [0, 8]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_side_by_side_are_neither_picked_nor_added_back(
    rows: list[int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = pack(random_experts(SHAPE, [15], [8]), [[0]], SHAPE, dtype, CPU, with_mixtures=False)
    generation = replace(random_generation(0, random_gate(8, 4, 1), torch.eye(1)), projections={(0, "v_proj"): packed})
    group = RoutedGroup(generation, torch.tensor(rows), 0, None)
    is_span = rows[-1] - rows[0] + 1 == len(rows)
    assert group.span == (slice(rows[0], rows[-1] + 1) if is_span else None)
    given: list[Tensor | None] = []
    original = layer.add_routed

    def noting(y: Tensor, x: Tensor, experts: ProjectionExperts, some: Tensor | None, *rest: Any) -> None:
        given.append(some)
        original(y, x, experts, some, *rest)

    monkeypatch.setattr(layer, "add_routed", noting)
    x, base = torch.randn(9, SHAPE[1]).to(dtype), nn.Linear(SHAPE[1], SHAPE[0], bias=False).to(dtype)
    state = StepState([], groups=[group])
    got = RoutedProjection(base, state, [OutputSlice(0, "v_proj", 0, SHAPE[0])])(x).detach()
    expected = base(x).detach()
    original(expected, x, packed, torch.tensor(rows), 0, None)
    torch.testing.assert_close(got, expected, rtol=0.02, atol=0.02)
    assert (given[0] is None) == is_span
