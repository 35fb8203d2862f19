"""What EWC, O-LoRA, I-LoRA and joint training add to a plain LoRA, each against a computation by hand."""

import random
from collections import Counter
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from safetensors.torch import load, save

from adapters.benchmark.ewc import Anchor, Ewc, fisher_diagonal
from adapters.benchmark.i_lora import ILora, replay, reservoir, slow_decay
from adapters.benchmark.learner import open_learner
from adapters.benchmark.lora_methods import JointLora, SequentialLora
from adapters.benchmark.o_lora import OLora
from adapters.benchmark.tasks import TaskData
from adapters.data import Tokens
from tests.adapters.benchmark.factory import make_cell

L = TypeVar("L", bound=SequentialLora)


def opened(kind: type[L], spec: str, tasks: list[TaskData], model: Path, work: Path) -> L:
    found = open_learner(make_cell(spec + ":dtype=float32", tasks, model), tasks, model, work)
    assert isinstance(found, kind)
    return found


def shifted(learner: SequentialLora, by: float) -> None:
    with torch.no_grad():
        for weight in learner.model.weights.values():
            weight.add_(by)


# EWC


def test_ewc_penalty_by_hand(tasks: list[TaskData], tiny_model: Path, tmp_path: Path) -> None:
    """Two tasks' anchors; 10 / 2 * (3 * 2² + 5 * 1²) for every single weight."""
    ewc = opened(Ewc, "ewc:strength=10", tasks, tiny_model, tmp_path)
    assert ewc.penalty() is None, "nothing is anchored before the first task ends"
    at = {name: weight.detach().clone() for name, weight in ewc.model.weights.items()}
    ewc.anchors = [
        Anchor({n: w - 2 for n, w in at.items()}, {n: torch.full_like(w, 3.0) for n, w in at.items()}),
        Anchor({n: w + 1 for n, w in at.items()}, {n: torch.full_like(w, 5.0) for n, w in at.items()}),
    ]
    penalty = ewc.penalty()
    assert penalty is not None
    assert float(penalty) == pytest.approx(85 * ewc.model.num_parameters, rel=1e-3)
    penalty.backward()
    for weight in ewc.model.weights.values():
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, torch.full_like(weight, 10 * (3 * 2 - 5 * 1)), rtol=1e-3, atol=0)


def test_fisher_is_the_mean_of_squared_gradients_of_single_examples(
    tasks: list[TaskData], tiny_model: Path, tmp_path: Path
) -> None:
    ewc = opened(Ewc, "ewc", tasks, tiny_model, tmp_path)
    shifted(ewc, 0.01)
    ewc.model.use(ewc.model.weights)
    data = ewc.render(tasks[1].train, "test")
    found = fisher_diagonal(ewc.model, data, [0, 3])
    expected = {name: torch.zeros_like(weight) for name, weight in ewc.model.weights.items()}
    for index in (0, 3):
        _, logits, labels = ewc.model.answer_logits(data, [index])
        torch.log_softmax(logits, -1)[torch.arange(len(labels)), labels].sum().backward()
        for name, working in ewc.model.working.items():
            assert working.grad is not None
            expected[name] += working.grad.pow(2) / 2
            working.grad = None
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-10)
    assert all(weight.grad is None for weight in ewc.model.weights.values())


def test_ewc_holds_the_weights_where_they_were(tasks: list[TaskData], tiny_model: Path, tmp_path: Path) -> None:
    """With an overwhelming penalty the second task moves the weights less than with none."""
    moved = {}
    for strength in (0, 1e9):
        ewc = opened(Ewc, f"ewc:strength={strength}:steps=5", tasks, tiny_model, tmp_path / str(strength))
        ewc.learn(0)
        ewc.anchors[0].fisher.update({n: torch.ones_like(f) for n, f in ewc.anchors[0].fisher.items()})
        before = ewc.anchors[0].centre
        ewc.learn(1)
        moved[strength] = sum(float((w - before[n]).norm()) for n, w in ewc.model.weights.items())
    assert moved[1e9] < 0.5 * moved[0]


# O-LoRA


def test_o_lora_penalty_by_hand(tasks: list[TaskData], tiny_model: Path, tmp_path: Path) -> None:
    """A_new holds 0.5 everywhere, A_past (two tasks, 16 rows) -2: every |inner product| is d_in."""
    o_lora = opened(OLora, "o-lora:shrinkage=0.1", tasks, tiny_model, tmp_path)
    weights = o_lora.model.weights
    o_lora.past = {n: torch.full((16, w.shape[1]), -2.0) for n, w in weights.items() if ".lora_A." in n}
    with torch.no_grad():
        for weight in weights.values():
            weight.fill_(0.5)
    inner = sum(0.5 * 8 * 16 * w.shape[1] for n, w in weights.items() if ".lora_A." in n)
    norms = sum(0.1 * 0.5 * w.numel() ** 0.5 for w in weights.values())
    penalty = o_lora.penalty()
    assert penalty is not None and float(penalty) == pytest.approx(inner + norms, rel=1e-5)


def test_o_lora_s_first_task_has_no_penalty(tasks: list[TaskData], tiny_model: Path, tmp_path: Path) -> None:
    assert opened(OLora, "o-lora", tasks, tiny_model, tmp_path).penalty() is None


def test_o_lora_adds_the_frozen_adapters_up(tasks: list[TaskData], tiny_model: Path, tmp_path: Path) -> None:
    """In the third task the model computes W0 + 2 (B1 A1 + B2 A2 + B3 A3), and only the third is trained."""
    o_lora = opened(OLora, "o-lora:steps=1", tasks, tiny_model, tmp_path)
    name = "model.layers.2.mlp.down_proj.lora_{}.trained.weight"
    total = torch.zeros(128, 256)
    for group in range(3):
        o_lora.before_task(group)
        shifted(o_lora, 0.01 * (group + 1))
        o_lora.model.use(o_lora.model.weights)
        a, b = (o_lora.model.weights[name.format(part)].detach() for part in "AB")
        total += 2 * b @ a
        data = o_lora.render(tasks[0].train, "test")
        if group < 2:
            o_lora.after_task(group, data)
    layer = o_lora.model.backbone.layers[2].mlp.down_proj
    x = torch.randn(5, 256, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(x) - layer.base_layer(x), x @ total.T, rtol=1e-3, atol=1e-4)
    past_before = {n: t.clone() for n, t in o_lora.past.items()}
    o_lora.model.add_gradients(data, [0])
    trained = {n for n, p in o_lora.model.backbone.model.named_parameters() if p.requires_grad}
    assert trained == set(o_lora.model.weights)
    assert all(weight.grad is not None for weight in o_lora.model.weights.values())
    assert all(torch.equal(tensor, past_before[n]) for n, tensor in o_lora.past.items())


# I-LoRA


def test_the_slow_weights_interpolate(tasks: list[TaskData], tiny_model: Path, tmp_path: Path) -> None:
    i_lora = opened(ILora, "i-lora:decay=0.6", tasks, tiny_model, tmp_path)
    assert [slow_decay(step, 0.6) for step in (1, 2, 3, 100)] == [0.5, 0.6, 0.6, 0.6]
    start = {name: weight.detach().clone() for name, weight in i_lora.model.weights.items()}
    shifted(i_lora, 1.0)
    i_lora.after_step()  # slow: start + 0.5
    shifted(i_lora, 1.0)
    i_lora.after_step()  # the first step of a next task counts on: slow: start + 0.6 * 0.5 + 0.4 * 2
    for name, slow in i_lora.slow.items():
        torch.testing.assert_close(slow, start[name] + 1.1)


def test_replay_s_gradient_by_hand(tasks: list[TaskData], tiny_model: Path, tmp_path: Path) -> None:
    """Half of the mean NLL and the mean squared distance of the normed states, one example at a time."""
    i_lora = opened(ILora, "i-lora", tasks, tiny_model, tmp_path)
    model = i_lora.model
    slow = {name: weight + 0.02 for name, weight in model.weights.items()}
    shifted(i_lora, 0.01)
    model.use(model.weights)
    data = i_lora.render([example for task in tasks for example in task.train[:4]], "test")
    batch = [0, 5, 9, 10]
    replay(model, slow, data, batch, consistency=300.0)
    found = {name: weight.grad for name, weight in model.weights.items()}
    model.clear_gradients()

    lengths = {i: len(data.tokens[i].ids) - 1 for i in batch}
    assert len(set(lengths.values())) > 1
    model.use(slow)
    with torch.no_grad():
        wanted = {i: model.normed_output(data, [i]) for i in batch}
    model.use(model.weights)
    for i in batch:
        _, logits, labels = model.answer_logits(data, [i])
        nll = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        num_answer = sum(len(data.tokens[j].answer) for j in batch)
        squares = (model.normed_output(data, [i]) - wanted[i]).pow(2).mean() * lengths[i] / sum(lengths.values())
        (nll / num_answer / 2 + 300.0 * squares).backward()
        model.collect_gradients()
    for name, weight in model.weights.items():
        gradient = found[name]
        assert gradient is not None and weight.grad is not None
        assert float((gradient - weight.grad).norm()) <= 0.01 * float(weight.grad.norm()) + 1e-6, name


def test_the_first_task_is_not_replayed_and_the_slow_weights_answer(
    tasks: list[TaskData], tiny_model: Path, tmp_path: Path
) -> None:
    i_lora = opened(ILora, "i-lora:memory=5:steps=3", tasks, tiny_model, tmp_path)
    plain = opened(SequentialLora, "seq-lora:steps=3", tasks, tiny_model, tmp_path)
    assert i_lora.learn(0).loss == plain.learn(0).loss
    assert len(i_lora.memory) == 5 and i_lora.seen == 8 and i_lora.step == 3
    for name, working in i_lora.model.working.items():
        assert torch.equal(working, i_lora.slow[name])
    i_lora.learn(1)
    assert len(i_lora.memory) == 5 and i_lora.seen == 16 and i_lora.step == 6


def test_the_reservoir_keeps_every_example_with_the_same_probability() -> None:
    counts: Counter[int] = Counter()
    for seed in range(3000):
        memory: list[Tokens] = []
        rng = random.Random(seed)
        seen = reservoir(memory, 0, [Tokens([i], [], "") for i in range(6)], 3, rng)
        seen = reservoir(memory, seen, [Tokens([i], [], "") for i in range(6, 10)], 3, rng)
        assert seen == 10 and len(memory) == 3
        counts.update(tokens.prompt[0] for tokens in memory)
    assert all(abs(counts[i] - 900) < 120 for i in range(10)), counts


# All


def test_joint_learns_everything_in_one_go(tasks: list[TaskData], tiny_model: Path, tmp_path: Path) -> None:
    joint = opened(JointLora, "joint:steps=2", tasks, tiny_model, tmp_path)
    assert joint.groups == [[0, 1, 2]]
    steps: list[None] = []
    joint.after_step = lambda: steps.append(None)  # type: ignore[method-assign]
    joint.learn(0)
    assert len(steps) == 6


@pytest.mark.parametrize(
    ("kind", "spec"), [(SequentialLora, "seq-lora"), (Ewc, "ewc"), (OLora, "o-lora"), (ILora, "i-lora")]
)
def test_a_state_read_back_is_the_state(
    kind: type[SequentialLora], spec: str, tasks: list[TaskData], tiny_model: Path, tmp_path: Path
) -> None:
    learner = opened(kind, spec, tasks, tiny_model, tmp_path)
    learner.learn(0)
    learner.learn(1)
    other = opened(kind, spec, tasks, tiny_model, tmp_path)
    other.load_state(load(save(learner.state())), 2)
    found, expected = other.state(), learner.state()
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
