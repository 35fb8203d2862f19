"""The softmax gate: probabilities, decisions, and its expansion when experts are split (eq. 14, logit invariance)."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adapters.bank import BankCorrupt, ExpertInfo, Manifest
from adapters.calibrate import softmax_gate
from adapters.gate import load_gate
from adapters.softmax_gate import ExpansionSettings, SoftmaxGate, largest
from tests.adapters.test_gate import WIDTH, empty_gate, task_samples
from tests.adapters.test_stored_gate import manifest_of

LOGITS = ExpansionSettings("logits", 0.0, seed=0)
MASS = ExpansionSettings("mass", 0.0, seed=0)


def gate_of(membership: list[list[float]], keep: int = 4, seed: int = 0) -> SoftmaxGate:
    """Random rows over the experts of `membership [tasks, experts]`."""
    generator = torch.Generator().manual_seed(seed)
    members = torch.tensor(membership, dtype=torch.float32)
    num_experts = members.shape[1]
    return replace(
        softmax_gate(empty_gate(keep=float(keep))),
        membership=members,
        weight=3 * torch.randn(num_experts + 1, WIDTH, generator=generator),
        bias=torch.randn(num_experts + 1, generator=generator) + (torch.arange(num_experts + 1) == num_experts),
    )


TWO_SHARE = gate_of([[1, 0, 1], [0, 1, 1]])


def queries(count: int = 60, seed: int = 3) -> Tensor:
    return 3 * torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


def test_without_experts_everything_is_base() -> None:
    gate = softmax_gate(empty_gate())
    assert torch.equal(gate.probabilities(queries()), torch.ones(60, 1))
    assert gate.decide(queries()).shape == (60, 0)


def test_it_is_one_linear_layer_and_a_softmax() -> None:
    """Token by token, in float64, on the whitened direction of the prefix mean."""
    x, gate = queries(), TWO_SHARE
    for row, found in zip(x.double(), gate.expert_probabilities(x), strict=True):
        whitened = gate.base_whitener.double().T @ (row - gate.base_mean.double())
        logits = gate.weight.double() @ (whitened / whitened.norm()) + gate.bias.double()
        torch.testing.assert_close(found, torch.softmax(logits, 0).float(), atol=1e-5, rtol=0)


def test_a_shared_experts_probability_is_split_between_its_tasks() -> None:
    x = queries()
    experts = TWO_SHARE.expert_probabilities(x)
    tasks = TWO_SHARE.probabilities(x)
    torch.testing.assert_close(tasks[:, 0], experts[:, 0] + experts[:, 2] / 2)
    torch.testing.assert_close(tasks[:, 1], experts[:, 1] + experts[:, 2] / 2)
    assert torch.equal(tasks[:, 2], experts[:, 3])
    torch.testing.assert_close(tasks.sum(-1), torch.ones(60))


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_gates_are_the_k_largest_probabilities_and_none_where_base_is_likelier_than_not(keep: int) -> None:
    gate = gate_of([[1, 0, 1], [0, 1, 1]], keep, seed=1)
    x = queries()
    num_base = 0
    for row, probabilities in zip(gate.decide(x), gate.expert_probabilities(x).tolist(), strict=True):
        *experts, base = probabilities
        kept = sorted(range(3), key=lambda e, p=experts: -p[e])[:keep]
        wanted = [p if base < 0.5 and e in kept else 0.0 for e, p in enumerate(experts)]
        num_base += base >= 0.5
        assert row.tolist() == pytest.approx(wanted)
    assert 0 < num_base < len(x)


def test_the_largest_of_fewer_are_all() -> None:
    values = torch.tensor([[0.1, 0.5, 0.4]])
    assert torch.equal(largest(values, 5), values)
    assert torch.equal(largest(values, 2), torch.tensor([[0.0, 0.5, 0.4]]))


def logits(gate: SoftmaxGate, x: Tensor) -> Tensor:
    return gate.features(x) @ gate.weight.T + gate.bias


def test_a_split_leaves_every_logit_as_it_was() -> None:
    """Expert 0 is cut in two for a third task; its parts have its logit, all others and base their own."""
    members = torch.tensor([[1.0, 0, 1, 1, 0], [0, 1, 1, 0, 0], [0, 0, 0, 1, 1]])
    new = TWO_SHARE.expanded([0, 1, 2, 0, None], task_samples(1, 0)[0], members, LOGITS)
    before, after = logits(TWO_SHARE, queries()), logits(new, queries())
    torch.testing.assert_close(after[:, [0, 1, 2, 3, 5]], before[:, [0, 1, 2, 0, 3]])
    assert torch.equal(new.membership, members)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000))
def test_with_mass_kept_a_split_changes_no_other_probability(seed: int) -> None:
    """Without a new row, to see the split alone: two successors share their parent's probability."""
    gate, x = gate_of([[1, 0, 1], [0, 1, 1]], seed=seed), queries(seed=seed)
    members = torch.tensor([[1.0, 0, 1, 1], [0, 1, 1, 0], [0, 0, 0, 1]])
    before = gate.expert_probabilities(x)
    mass = gate.expanded([0, 1, 2, 0], x, members, MASS).expert_probabilities(x)
    torch.testing.assert_close(mass[:, [1, 2, 4]], before[:, 1:])
    torch.testing.assert_close(mass[:, 0] + mass[:, 3], before[:, 0])
    kept = gate.expanded([0, 1, 2, 0], x, members, LOGITS).expert_probabilities(x)
    torch.testing.assert_close(kept[:, 0] + kept[:, 3], 2 * before[:, 0] / (1 + before[:, 0]))


def test_an_expert_that_only_changes_its_tasks_keeps_its_row() -> None:
    """Wholly shared: one successor, nothing to divide, nothing to perturb."""
    members = torch.tensor([[1.0, 0, 1], [0, 1, 1], [1, 0, 0]])
    new = TWO_SHARE.expanded([0, 1, 2], queries(), members, ExpansionSettings("mass", 0.5, 0))
    assert torch.equal(new.weight, TWO_SHARE.weight) and torch.equal(new.bias, TWO_SHARE.bias)


def test_the_unique_successor_is_perturbed_the_shared_one_is_not() -> None:
    members = torch.tensor([[1.0, 0, 1, 1], [0, 1, 1, 0], [0, 0, 0, 1]])
    new = TWO_SHARE.expanded([0, 1, 2, 0], queries(), members, ExpansionSettings("logits", 0.01, 0))
    assert torch.equal(new.weight[3], TWO_SHARE.weight[0])
    moved = (new.weight[0] - TWO_SHARE.weight[0]).norm()
    torch.testing.assert_close(moved, 0.01 * TWO_SHARE.weight[0].norm(), atol=1e-4, rtol=1e-3)


def test_a_new_row_finds_its_task_before_it_has_learned() -> None:
    """Two tasks far from general text in different directions; each sample goes to its own, general text to base."""
    tasks = task_samples(2, seed=1)
    gate = softmax_gate(empty_gate(keep=2.0))
    one = gate.expanded([None], tasks[0], torch.tensor([[1.0]]), MASS)
    both = one.expanded([0, None], tasks[1], torch.eye(2), MASS)
    for task, samples in enumerate(tasks):
        leaders = both.expert_probabilities(samples).argmax(-1)
        assert float((leaders == task).float().mean()) > 0.9
    opposite = gate.base_mean - 3 * (tasks[0].mean(0) - gate.base_mean)
    assert int(one.expert_probabilities(opposite).argmax()) == 1
    row, bias = gate.start_row(tasks[0])
    assert float(row.norm()) == pytest.approx(10, rel=1e-4) and float(bias) == pytest.approx(-4)


def manifest(num_tasks: int = 2, membership: tuple[tuple[int, ...], ...] = ((1, 0, 1), (0, 1, 1))) -> Manifest:
    names = [f"task{i}" for i in range(num_tasks)]
    experts = []
    for column in range(3):
        tasks = tuple(name for name, row in zip(names, membership, strict=True) if row[column])
        kind = "unique" if len(tasks) == 1 else "shared"
        digest = f"{column}" * 64
        experts.append(
            ExpertInfo(id=f"e{column}", kind=kind, tasks=tasks, rank=1, num_blocks=1, object=digest, object_bytes=1)
        )
    fields = dict(manifest_of(num_tasks, "softmax")) | {"experts": tuple(experts), "membership": membership}
    return Manifest(**fields)


def test_a_stored_gate_decides_as_before() -> None:
    loaded = load_gate(manifest(), TWO_SHARE.tensors())
    assert isinstance(loaded, SoftmaxGate)
    assert torch.equal(loaded.decide(queries()), TWO_SHARE.decide(queries()))


@pytest.mark.parametrize("name", sorted(TWO_SHARE.tensors()))
@pytest.mark.parametrize("change", ["missing", "dtype", "longer", "scalar"])
def test_a_gate_with_a_wrong_tensor_is_refused(name: str, change: str) -> None:
    tensors = TWO_SHARE.tensors()
    tensor = tensors.pop(name)
    if change != "missing":
        changed = {"dtype": tensor.double(), "longer": torch.cat([tensor, tensor]), "scalar": tensor.sum()}
        tensors[name] = changed[change]
    with pytest.raises(BankCorrupt, match=rf"gate of generation 2\b.*\b{name}\b"):
        load_gate(manifest(), tensors)


def test_a_gate_of_other_experts_is_refused() -> None:
    swapped = replace(TWO_SHARE, membership=torch.tensor([[0.0, 1, 1], [1, 0, 1]]))
    with pytest.raises(BankCorrupt, match="its membership is not the manifest's"):
        load_gate(manifest(), swapped.tensors())


def test_log_two_is_what_two_successors_lose() -> None:
    members = torch.tensor([[1.0, 0, 1, 1], [0, 1, 1, 0], [0, 0, 0, 1]])
    new = TWO_SHARE.expanded([0, 1, 2, 0], queries(), members, MASS)
    torch.testing.assert_close(new.bias[[0, 3]], TWO_SHARE.bias[0] - math.log(2) * torch.ones(2))
