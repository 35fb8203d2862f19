"""Processes take their parts and add up; what accelerate silently does not do is refused.

That two processes learn what one learns is tested in `tests/chaos/test_learning.py`.
"""

import pytest
import torch

from adapters.parallel import ALONE, ParallelError, Processes


def test_parts_are_all_items_each_once() -> None:
    items = list(range(7))
    parts = [Processes(index, 3).part(items) for index in range(3)]
    assert sorted(item for part in parts for item in part) == items
    assert ALONE.part(items) == items and ALONE.is_main
    assert Processes(2, 3).part([1, 2]) == []


def test_alone_nothing_is_added_up_or_waited_for() -> None:
    tensors = [torch.ones(2), torch.zeros(3, dtype=torch.bfloat16)]
    ALONE.add_up(tensors)
    ALONE.wait()
    assert tensors[0].tolist() == [1, 1]
    assert Processes.join({}) == ALONE
    assert Processes.join({"WORLD_SIZE": "1", "RANK": "0"}) == ALONE


def test_all_tensors_are_added_up_at_once_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """With another process whose every value is 1: each tensor gets its own sums back, in its shape and dtype."""
    calls: list[torch.dtype] = []

    def add_ones(tensor: torch.Tensor) -> None:
        calls.append(tensor.dtype)
        tensor += 1

    monkeypatch.setattr(torch.distributed, "all_reduce", add_ones)
    tensors = [torch.arange(6.0).view(2, 3).T, torch.tensor(5.0), torch.full((1, 2), 3.0, dtype=torch.bfloat16)]
    Processes(0, 2).add_up(tensors)
    assert [tensor.tolist() for tensor in tensors] == [[[1, 4], [2, 5], [3, 6]], 6, [[4, 4]]]
    assert tensors[2].dtype == torch.bfloat16 and calls == [torch.float32]
    Processes(0, 2).add_up(tensors[2:])
    assert tensors[2].tolist() == [[5, 5]] and calls == [torch.float32] * 2
    Processes(0, 2).add_up([])
    assert len(calls) == 2


def test_what_accelerate_makes_one_process_of_is_refused() -> None:
    """`accelerate launch --cpu --num_processes 2` says nothing and starts one."""
    environment = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "True", "MASTER_PORT": "29500"}
    with pytest.raises(ParallelError, match="starts one process.*--multi_gpu --num_processes N"):
        Processes.join(environment)
    assert Processes.join({"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "True"}) == ALONE
