"""The training loop: the same bits after a restart anywhere, the same gradient in parts and in several processes."""

import json

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from adapters.blocks import WarmUp
from adapters.composition import anchor
from adapters.examples import Prepared, prepare
from adapters.fit import Fitting, backward_nll
from adapters.gate_learning import Fitted, Learning
from adapters.learner import Learner, open_learner
from adapters.nll import answer_nll
from adapters.parallel import ALONE, Processes
from adapters.settings import LearnSettings
from adapters.softmax_gate import SoftmaxGate
from adapters.trainer import new_expert, score_blocks
from tests.adapters.learning import QUICK, TRAIN

pytestmark = pytest.mark.usefixtures("few_general_prompts")

SETTINGS = QUICK.model_copy(update={"steps": 4, "late_start": 0.5, "batch_size": 5, "dtype": "float32"})
BLOCKS = [(1, "v_proj", 0, 1), (2, "down_proj", 1, 2), (3, "o_proj", 1, 1)]


@pytest.fixture(scope="module", params=["analytic", "softmax"])
def learner(
    request: pytest.FixtureRequest, few_general_prompts: None, tiny_model: str, tmp_path_factory: pytest.TempPathFactory
) -> Learner:
    """A bank without tasks, opened."""
    settings = SETTINGS.model_copy(update={"gate": request.param})
    return open_learner(tmp_path_factory.mktemp("empty") / "bank", tiny_model, settings)


@pytest.fixture(scope="module")
def data(learner: Learner) -> Prepared:
    data, _ = prepare(learner.backbone, TRAIN["colours"], 1, learner.gate, 1024, "test")
    data.weights = [torch.ones(len(tokens.ids) - 1, 1) for tokens in data.tokens]
    return data


def fitting_of(learner: Learner, data: Prepared, settings: LearnSettings = SETTINGS, **how: object) -> Fitting:
    """The very start of a task: an expert that is anchored, and a gate that is fitted, or learns."""
    expert = new_expert(learner.model, BLOCKS, settings)
    for delta in expert.values():
        delta.b.data.fill_(0.01)
    learner.model.add("new", expert, [0, 1])
    anchors = anchor(learner.model, ["new"], settings)
    if isinstance(learner.gate, SoftmaxGate):
        start = torch.cat([data.pooled[0], data.pooled[1]])
        row, bias = learner.gate.start_row(start)
        general = torch.randn(40, learner.gate.width, generator=torch.Generator().manual_seed(1))
        gate = SoftmaxGate(
            **learner.gate.tensors()
            | {
                "membership": torch.ones(1, 1),
                "weight": torch.stack([row, learner.gate.weight[-1]]),
                "bias": torch.stack([bias, learner.gate.bias[-1]]),
            }
        )
        decisions: Fitted | Learning = Learning(gate, ["new"], general, settings.seed)
    else:
        decisions = Fitted(learner.gate)  # type: ignore[arg-type]
    return Fitting(learner.model, ["new"], data, settings, anchors, decisions, **how)  # type: ignore[arg-type]


def values(fitting: Fitting) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in fitting.parameters]


@pytest.mark.parametrize("stop_after", [1, 4])
def test_after_a_restart_every_bit_is_the_same(stop_after: int, learner: Learner, data: Prepared) -> None:
    """Through a safetensors file and JSON, as a checkpoint is kept; also after the last step."""
    whole = fitting_of(learner, data)
    loss = whole.run()
    expected = values(whole)
    first = fitting_of(learner, data)
    for _ in range(stop_after):
        first.advance()
    tensors, state = first.state()
    file = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    second = fitting_of(learner, data)
    second.restore(load(file), json.loads(json.dumps(state)))
    assert second.step == stop_after
    assert second.run() == loss and second.losses == whole.losses
    assert all(torch.equal(a, b) for a, b in zip(values(second), expected, strict=True))
    assert not torch.equal(expected[0], values(fitting_of(learner, data))[0])


@pytest.mark.parametrize("accumulate", [2, 9])
def test_in_parts_a_step_is_the_same(accumulate: int, learner: Learner, data: Prepared) -> None:
    """More parts than examples are as many as there are examples."""
    whole = gradients(fitting_of(learner, data))
    parts = gradients(fitting_of(learner, data, accumulate=accumulate))
    for one, other in zip(parts, whole, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


def gradients(fitting: Fitting) -> list[Tensor]:
    """Of one step, clipped."""
    fitting.advance()
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in fitting.parameters]


@pytest.mark.parametrize("count", [2, 9])
def test_the_processes_parts_add_up_to_the_whole(count: int, learner: Learner, data: Prepared) -> None:
    """The gradient of the whole objective and the NLL of a batch, with more processes than examples too."""
    batch = [3, 1, 4, 0, 2]

    def part(index: int, of: int) -> list[Tensor]:
        fitting = fitting_of(learner, data, processes=Processes(index, of))
        for parameter in fitting.rank_rows:
            parameter.data += 0.01  # so that the anchors pull
        nll = fitting._backward(batch, [fitting.decisions.weights(data, i) for i in batch])
        return [nll, *(torch.zeros_like(p) if p.grad is None else p.grad for p in fitting.parameters)]

    sums = [torch.stack(same).sum(0) for same in zip(*(part(i, count) for i in range(count)), strict=True)]
    for one, other in zip(sums, part(0, 1), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


def test_the_mean_is_over_the_batchs_answer_tokens(learner: Learner, data: Prepared) -> None:
    batch = [0, 1]
    weights = [data.weights[i] for i in batch]
    fitting_of(learner, data)
    each = [float(answer_nll(learner.model, data, [i], [data.weights[i]]).detach()) for i in batch]
    labels = sum(len(data.tokens[i].answer) for i in batch)
    found = backward_nll(learner.model, data, batch, weights, 1, ALONE)
    assert float(found) == pytest.approx(sum(each) / labels, rel=1e-4)


def test_block_scores_in_parts_are_the_same(learner: Learner, data: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters.trainer.WarmUp", lambda: WarmUp(max_steps=2))
    whole = score_blocks(learner.model, data, SETTINGS)
    parts = score_blocks(learner.model, data, SETTINGS, accumulate=3)
    assert whole.warm_up_steps == parts.warm_up_steps == 2
    assert whole.gradients.keys() == whole.scores.keys() == parts.scores.keys()
    for site, grid in whole.scores.items():
        torch.testing.assert_close(parts.scores[site], grid, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(parts.gradients[site], whole.gradients[site], atol=1e-4, rtol=1e-3)
