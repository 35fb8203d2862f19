"""A bank's own steps do work in proportion to its experts: counted, not timed."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adapters.bank import Bank, objects
from adapters.bank import manifest as manifest_module
from seta_runtime.bench.many_tasks import bank_of
from seta_runtime.bench.scale import load, main
from seta_runtime.ops.experts import pack
from seta_runtime.ops.fused import rank_blocks
from tests.seta_runtime.random_experts import CPU, random_blocks

FEW, MANY = 40, 80
STEPS: dict[str, Callable[[Bank], object]] = {
    "list": lambda bank: [bank.manifest(number).digest for number in bank.generations()],
    "verify": lambda bank: bank.verify(),
    "choose": lambda bank: bank.set_current(2),
    "point": lambda bank: bank.point_to(bank.manifest(2)),
    "gc": lambda bank: bank.gc(),
    "export": lambda bank: sum(map(len, bank.export_chunks(bank.manifest(2), bank.manifest(2).refs))),
    "activate": lambda bank: load(bank, 2),
}


@pytest.fixture(scope="module")
def banks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Bank]:
    folder = tmp_path_factory.mktemp("scale")
    with pytest.MonkeyPatch.context() as patch:  # thousands of waits for the disk are not what is counted
        patch.setattr("os.fsync", lambda _: None)
        patch.setattr(manifest_module, "MANY_TASKS", FEW - 2)
        return {count: bank_of(folder / str(count), count) for count in (FEW, MANY)}


class Values(TorchDispatchMode):
    """Counts the values that tensor operations read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        is_view = func.is_view if hasattr(func, "is_view") else False
        if not is_view:
            self.count += sum(t.numel() for t in tree_leaves((args, result)) if isinstance(t, Tensor))
        return result


def calls(step: Callable[[], object]) -> int:
    """Python and C calls."""
    seen: Counter[str] = Counter()
    sys.setprofile(lambda frame, event, argument: seen.update((event,)))
    try:
        step()
    finally:
        sys.setprofile(None)
    return seen["call"] + seen["c_call"]


def values(step: Callable[[], object]) -> int:
    with Values() as found:
        step()
    return found.count


@pytest.mark.parametrize("name", STEPS)
def test_work_grows_with_the_number_of_experts(banks: dict[int, Bank], name: str) -> None:
    """Twice the experts: at most twice the work, since some of it is fixed. Square growth would be four times."""
    few, many = (calls(lambda bank=banks[count]: STEPS[name](bank)) for count in (FEW, MANY))  # type: ignore[misc]
    assert many <= 1.01 * MANY / FEW * few


@pytest.mark.parametrize("form", ["cpu", "fused"])
def test_packing_does_not_go_over_all_experts_for_each(form: str) -> None:
    def packing(count: int) -> int:
        generator = torch.Generator().manual_seed(0)
        experts = [random_blocks((16, 32), 2, 2, 8, generator) for _ in range(count)]
        if form == "fused":
            return values(lambda: rank_blocks(experts, (16, 32), torch.bfloat16, CPU))
        return values(lambda: pack(experts, [[i] for i in range(count)], (16, 32), torch.bfloat16, CPU))

    assert packing(60) <= 1.01 * 2 * packing(30)


def test_each_object_is_read_once(banks: dict[int, Bank], monkeypatch: pytest.MonkeyPatch) -> None:
    bank = banks[FEW]
    reads: list[str] = []
    read_file = objects.read_file

    def reading(root: Path, path: str, *rest: Any) -> bytes:
        reads.append(path)
        return read_file(root, path, *rest)

    monkeypatch.setattr(objects, "read_file", reading)
    load(bank, 2)
    assert len(reads) == len(set(reads)) == len(bank.manifest(2).refs)
    reads.clear()
    bank.verify()
    assert len(reads) == len(set(reads)) == len({ref for number in range(3) for ref in bank.manifest(number).refs})


def test_a_manifest_of_many_tasks_has_no_matrix(banks: dict[int, Bank]) -> None:
    bank = banks[FEW]
    manifest, where = bank.manifest(2), bank.root / "generations/00002.json"
    assert manifest.format_version == 3 and b"membership" not in where.read_bytes()
    assert manifest.experts_by_task == manifest.tasks_by_expert == [[i] for i in range(FEW)]
    assert where.read_bytes() == manifest.to_bytes()


def test_the_command(tmp_path: Path) -> None:
    main([2, 4], 1, tmp_path)
    found = json.loads((tmp_path / "scale.json").read_text())
    assert list(found) == ["2", "4"]
    assert found["4"]["activate_seconds"] > 0 and found["4"]["resident_bytes"] > found["2"]["resident_bytes"]
    assert found["4"]["add_seconds"] > 0 and found["4"]["manifest_bytes"] > 1000
