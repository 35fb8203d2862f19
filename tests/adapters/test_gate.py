"""The gate: closed form in any order, decisions, prefix means."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adapters.evidence import LOG_WEIGHT_FLOOR, RMS_EPS, prefix_mean
from adapters.gate import RIVAL_MARGIN, TIE_LOGITS, TIE_MARGIN, AnalyticGate
from tests.adapters.bank.factory import BASE

WIDTH = 8
SCALARS = {"threshold": 0.4, "sharpness": 5.0, "temperature": 2.0, "ridge": 0.05, "keep": 1.0}


def empty_gate(**scalars: float) -> AnalyticGate:
    """A gate without tasks over random fixed parts."""
    generator = torch.Generator().manual_seed(1)
    root = torch.randn(WIDTH, WIDTH, generator=generator)
    return AnalyticGate(
        projection=torch.randn(BASE.hidden_size, WIDTH, generator=generator),
        content_weight=torch.randn(BASE.hidden_size, generator=generator),
        content_bias=torch.tensor([0.5]),
        base_mean=torch.randn(WIDTH, generator=generator),
        base_whitener=root @ root.T / WIDTH + torch.eye(WIDTH),
        count=torch.zeros(0),
        mean=torch.zeros(0, WIDTH),
        scatter=torch.zeros(WIDTH, WIDTH),
        **{name: torch.tensor([value]) for name, value in (SCALARS | scalars).items()},
    )


def task_samples(num_tasks: int, seed: int) -> list[Tensor]:
    """Prefix means of tasks with different centres, spreads and sizes."""
    generator = torch.Generator().manual_seed(seed)
    return [
        2 * torch.randn(WIDTH, generator=generator)
        + (0.5 + 0.1 * task) * torch.randn(10 + 7 * task, WIDTH, generator=generator)
        for task in range(num_tasks)
    ]


def fit(gate: AnalyticGate, tasks: list[Tensor]) -> AnalyticGate:
    for samples in tasks:
        gate = gate.with_task(samples)
    return gate


def queries(tasks: list[Tensor]) -> Tensor:
    """Points near and far from the tasks: `[n, c]`."""
    generator = torch.Generator().manual_seed(7)
    return torch.cat([*(samples[:5] for samples in tasks), 3 * torch.randn(40, WIDTH, generator=generator)])


def joint_probabilities(gate: AnalyticGate, tasks: list[Tensor], x: Tensor) -> Tensor:
    """The gate's definition, fitted on all samples at once, in float64."""
    labels = torch.cat([torch.full((len(samples),), task) for task, samples in enumerate(tasks)])
    samples = torch.cat(tasks).double()
    means = torch.stack([samples[labels == task].mean(0) for task in range(len(tasks))])
    centred = samples - means[labels]
    covariance = centred.T @ centred / len(samples)
    ridge = float(gate.ridge)
    shrunk = (1 - ridge) * covariance + ridge * covariance.diagonal().mean() * torch.eye(WIDTH).double()
    inverse = torch.linalg.inv(shrunk)
    x = x.double()
    scores = torch.stack([x @ inverse @ mean - 0.5 * mean @ inverse @ mean for mean in means], dim=-1)
    whitener, origin = gate.base_whitener.double(), gate.base_mean.double()
    cosine = torch.stack(
        [torch.cosine_similarity((x - origin) @ whitener, ((m - origin) @ whitener)[None]) for m in means], dim=-1
    )
    scores = scores.masked_fill(cosine < cosine.amax(-1, keepdim=True) - RIVAL_MARGIN, -torch.inf)
    known = torch.sigmoid((cosine.amax(-1, keepdim=True) - float(gate.threshold)) * float(gate.sharpness))
    return torch.cat([torch.softmax(scores / float(gate.temperature), -1) * known, 1 - known], dim=-1).float()


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(4)), seed=st.integers(0, 1000))
def test_tasks_in_any_order_give_the_same_gate(order: list[int], seed: int) -> None:
    tasks = task_samples(4, seed)
    x = queries(tasks)
    expected = fit(empty_gate(), tasks).probabilities(x)
    found = fit(empty_gate(), [tasks[task] for task in order]).probabilities(x)
    torch.testing.assert_close(found, expected[:, [*order, 4]], atol=1e-4, rtol=0)


@settings(max_examples=25, deadline=None)
@given(num_tasks=st.integers(1, 5), seed=st.integers(0, 1000))
def test_fitting_in_turn_is_fitting_jointly(num_tasks: int, seed: int) -> None:
    tasks = task_samples(num_tasks, seed)
    gate, x = fit(empty_gate(), tasks), queries(tasks)
    torch.testing.assert_close(gate.probabilities(x), joint_probabilities(gate, tasks, x), atol=1e-4, rtol=0)


def test_a_new_task_leaves_the_earlier_tasks_alone() -> None:
    """Their statistics to the bit; their similarity to rounding, as a matmul's order of sums follows its shape."""
    tasks = task_samples(6, seed=3)
    x = queries(tasks)
    for known in range(1, 6):
        before, after = fit(empty_gate(), tasks[:known]), fit(empty_gate(), tasks[: known + 1])
        assert torch.equal(after.mean[:known], before.mean)
        assert torch.equal(after.count[:known], before.count)
        torch.testing.assert_close(after.similarity(x)[:, :known], before.similarity(x), atol=2e-6, rtol=0)


@settings(max_examples=25, deadline=None)
@given(num_tasks=st.integers(0, 5), seed=st.integers(0, 1000))
def test_probabilities_sum_to_one(num_tasks: int, seed: int) -> None:
    tasks = task_samples(num_tasks, seed)
    probabilities = fit(empty_gate(), tasks).probabilities(queries(tasks))
    assert probabilities.shape[-1] == num_tasks + 1
    assert bool((probabilities >= 0).all())
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(len(probabilities)))


@pytest.mark.parametrize("keep", [2, 3])
def test_decide_keeps_the_likeliest_tasks_and_only_they_share(keep: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters.gate.RIVAL_MARGIN", 3.0)  # every task a rival, so that there are `keep` to keep
    tasks = task_samples(3, seed=5)
    gate = fit(empty_gate(keep=keep, temperature=60.0, threshold=0.0), tasks)
    x = queries(tasks)
    weights, probabilities = gate.decide(x), gate.probabilities(x)
    num_known = 0
    for row, expected in zip(weights, probabilities[:, :-1].tolist(), strict=True):
        if max(expected) <= 0.5:
            assert not row.any()
            continue
        num_known += 1
        best = sorted(range(3), key=lambda task, p=expected: -p[task])[:keep]
        total = sum(expected[task] for task in best)
        wanted = [expected[task] / total if task in best else 0.0 for task in range(3)]
        torch.testing.assert_close(row, torch.tensor(wanted))
        assert int((row > 0).sum()) == keep
    assert 0 < num_known < len(x), "the queries must show both cases"


def test_a_later_task_cannot_claim_tokens_that_are_clearly_an_older_ones() -> None:
    """The discriminants' pooled scatter changes with every task; where the cosines are clear it has no say."""
    num_clear = 0
    for seed in range(20):
        old, new = task_samples(2, seed)
        alone, both = fit(empty_gate(), [old]), fit(empty_gate(), [old, new])
        x = queries([old, new])
        similarity = both.similarity(x)
        clear = similarity[:, 0] > similarity[:, 1] + TIE_MARGIN + 1e-4
        num_clear += int(clear.sum())
        torch.testing.assert_close(both.decide(x)[clear, :1], alone.decide(x)[clear], atol=0, rtol=0)
        assert not both.decide(x)[clear, 1].any()
    assert num_clear > 100


def decide_slowly(gate: AnalyticGate, x: Tensor) -> list[int]:
    """Which task has each row, -1 for base: the oldest of those that are close to the best, if it is known itself."""
    weight, bias = gate._read_out  # type: ignore[attr-defined]
    found = []
    for row in x:
        cosine = gate.similarity(row[None])[0].tolist()
        logit = ((row @ weight + bias) / gate.temperature).tolist()
        nearest = max(cosine)
        close = [task for task, near in enumerate(cosine) if near >= nearest - TIE_MARGIN]
        best = max(logit[task] for task in close)
        tied = [task for task in close if logit[task] >= best - TIE_LOGITS]
        found.append(tied[0] if cosine[tied[0]] > float(gate.threshold) else -1)
    return found


@settings(max_examples=20, deadline=None)
@given(num_tasks=st.integers(1, 5), spread=st.sampled_from([0.1, 0.5, 1.0]), seed=st.integers(0, 1000))
def test_of_tasks_that_cannot_be_told_apart_the_oldest_decides(num_tasks: int, spread: float, seed: int) -> None:
    """Tasks from far apart to near twins."""
    tasks = [1 + spread * samples for samples in task_samples(num_tasks, seed)]
    gate, x = fit(empty_gate(threshold=0.2), tasks), queries(tasks)
    weights = gate.decide(x)
    assert torch.where(weights.any(-1), weights.argmax(-1), -1).tolist() == decide_slowly(gate, x)


def test_what_begins_alike_stays_with_the_task_that_was_first() -> None:
    """Near twins: where the two cannot be told apart, the later one moves nothing, neither to itself nor from base."""
    num_nearer, num_base = 0, 0
    for seed in range(20):
        old = task_samples(1, seed)[0]
        new = old + 0.3 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))
        before, after = fit(empty_gate(threshold=0.93), [old]), fit(empty_gate(threshold=0.93), [old, new])
        weight, bias = after._read_out  # type: ignore[attr-defined]
        logits, cosine = (old @ weight + bias) / after.temperature, after.similarity(old)
        is_tied = (logits[:, 1] - logits[:, 0] < TIE_LOGITS) & ((cosine[:, 1] - cosine[:, 0]).abs() < TIE_MARGIN)
        first, second = before.decide(old)[is_tied], after.decide(old)[is_tied]
        assert torch.equal(second[:, :1], first) and not second[:, 1].any()
        num_nearer += int((cosine[:, 1] > cosine[:, 0])[is_tied].sum())
        num_base += int((first == 0).sum())
    assert num_nearer > 20 and num_base > 2


def test_keeping_one_is_one_hot_to_the_bit() -> None:
    tasks = task_samples(4, seed=2)
    weights = fit(empty_gate(keep=1), tasks).decide(torch.cat(tasks))
    assert set(weights.flatten().tolist()) == {0.0, 1.0}
    assert bool((weights.sum(-1) <= 1).all())


def test_where_base_is_likelier_every_weight_is_zero() -> None:
    tasks = task_samples(3, seed=4)
    gate = fit(empty_gate(keep=2), tasks)
    probabilities = gate.probabilities(queries(tasks))
    base = probabilities[:, -1] >= probabilities[:, :-1].sum(-1)
    assert bool(base.any()) and not bool(base.all())
    assert not gate.decide(queries(tasks))[base].any()


def test_without_tasks_it_is_always_base() -> None:
    gate, x = empty_gate(), torch.randn(2, 5, WIDTH)
    assert gate.num_tasks == 0
    assert torch.equal(gate.probabilities(x), torch.ones(2, 5, 1))
    assert gate.decide(x).shape == (2, 5, 0)


def test_prefix_mean_equals_a_slow_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(3, 17, WIDTH, generator=generator)
    log_weight = torch.rand(3, 17, generator=generator) * LOG_WEIGHT_FLOOR
    expected = torch.empty_like(z)
    for row in range(3):
        for t in range(17):
            total, weights = torch.zeros(WIDTH, dtype=torch.float64), 0.0
            for u in range(t + 1):
                weight = float(log_weight[row, u].double().exp())
                total += weight * z[row, u].double()
                weights += weight
            expected[row, t] = (total / weights).float()
    torch.testing.assert_close(prefix_mean(z, log_weight), expected, atol=1e-5, rtol=1e-4)


def test_evidence_projects_the_normalised_state_and_weighs_content() -> None:
    gate = empty_gate()
    hidden = torch.randn(9, BASE.hidden_size, generator=torch.Generator().manual_seed(3)).bfloat16()
    z, log_weight = gate.evidence(hidden)
    for state, found, weight in zip(hidden.double(), z, log_weight, strict=True):
        unit = state / (state.pow(2).mean() + RMS_EPS).sqrt()
        content = float((unit @ gate.content_weight.double() + 0.5).clamp(0, 1))
        torch.testing.assert_close(found, (unit @ gate.projection.double()).float(), atol=1e-5, rtol=1e-4)
        assert float(weight) == pytest.approx((1 - content) * LOG_WEIGHT_FLOOR, abs=1e-4)
    assert len(set(log_weight.tolist())) > 2, "some tokens must be neither surely content nor surely template"
