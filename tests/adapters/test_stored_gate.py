"""A gate of a bank: it decides as before, and what is refused on load."""

from dataclasses import replace

import pytest
import torch

from adapters.bank import BankCorrupt, GateInfo, Manifest, TaskInfo
from adapters.gate import load_gate
from tests.adapters.bank.factory import BASE, CREATED
from tests.adapters.test_gate import WIDTH, empty_gate, fit, queries, task_samples


def manifest_of(num_tasks: int, kind: str = "analytic") -> Manifest:
    names = [f"task{i}" for i in range(num_tasks)]
    return Manifest(
        generation=num_tasks,
        parent=num_tasks - 1 if num_tasks else None,
        created=CREATED,
        base=BASE,
        trunk_layers=1,
        block_size=4,
        targets=("v_proj",),
        tasks=tuple(TaskInfo(name=name, generation=1, num_train=1, num_test=1) for name in names),
        membership=tuple(() for _ in names),
        gate=GateInfo(kind=kind, object="ab" * 32, object_bytes=1),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("num_tasks", [0, 2])
def test_a_stored_gate_decides_as_before(num_tasks: int) -> None:
    tasks = task_samples(num_tasks, seed=6)
    gate, x = fit(empty_gate(), tasks), queries(tasks)
    loaded = load_gate(manifest_of(num_tasks), gate.tensors())
    assert torch.equal(loaded.probabilities(x), gate.probabilities(x))


@pytest.mark.parametrize("name", sorted(empty_gate().tensors()))
@pytest.mark.parametrize("change", ["missing", "dtype", "longer", "one dimension more", "scalar"])
def test_a_gate_with_a_wrong_tensor_is_refused(name: str, change: str) -> None:
    tensors = fit(empty_gate(), task_samples(2, seed=6)).tensors()
    tensor = tensors.pop(name)
    if change == "dtype":
        tensors[name] = tensor.double()
    elif change == "longer":
        tensors[name] = torch.cat([tensor, tensor])
    elif change == "one dimension more":
        tensors[name] = tensor.unsqueeze(0)
    elif change == "scalar":
        tensors[name] = tensor.sum()
    with pytest.raises(BankCorrupt, match=rf"gate of generation 2\b.*\b{name}\b"):
        load_gate(manifest_of(2), tensors)


def test_a_gate_with_an_unknown_tensor_is_refused() -> None:
    with pytest.raises(BankCorrupt, match="surprise"):
        load_gate(manifest_of(0), empty_gate().tensors() | {"surprise": torch.zeros(1)})


def test_a_gate_of_another_number_of_tasks_is_refused() -> None:
    with pytest.raises(BankCorrupt, match=r"count is torch\.float32 \[1\], expected float32 \[2\]"):
        load_gate(manifest_of(2), fit(empty_gate(), task_samples(1, seed=6)).tensors())


def test_a_gate_of_another_kind_is_refused() -> None:
    with pytest.raises(BankCorrupt, match=r"has tensors .*'scatter'.* expected .*'bias'"):
        load_gate(manifest_of(0, kind="softmax"), empty_gate().tensors())


def test_a_gate_wider_than_the_kv_cache_is_refused() -> None:
    gate = empty_gate()
    wide = replace(
        gate,
        projection=torch.zeros(BASE.hidden_size, WIDTH + 1),
        base_mean=torch.zeros(WIDTH + 1),
        base_whitener=torch.eye(WIDTH + 1),
        mean=torch.zeros(0, WIDTH + 1),
        scatter=torch.zeros(WIDTH + 1, WIDTH + 1),
    )
    with pytest.raises(BankCorrupt, match=f"{WIDTH + 1} wide"):
        load_gate(manifest_of(0), wide.tensors())
