"""Training with compiled decoder layers: the same losses, gradients and answers. Slow: it compiles."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch._inductor.config
from torch import Tensor, nn

from adapters.backbone import Backbone
from adapters.benchmark.lora import LoraModel
from adapters.benchmark.settings import LoraSettings
from adapters.calibrate import general_prompts
from adapters.data import Example
from adapters.examples import Prepared, render_all
from adapters.fit import Fitting, backward_nll
from adapters.learn import learn_tasks
from adapters.parallel import ALONE
from adapters.routed import RoutedModel
from adapters.settings import RunSettings
from adapters.trainer import new_expert
from adapters.trunk import trunk_outputs
from tests.adapters.bank.faults import Killed
from tests.adapters.learning import QUICK, SETTINGS, TEST, TRAIN
from tests.tiny import make_tiny_model

needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="there is no C++ compiler"
)


@needs_compiler
def test_compiled_layers_compute_the_same(tmp_path: Path) -> None:
    """For batches of several sizes and lengths, backward included, and without gradients."""
    model_dir, settings = make_tiny_model(tmp_path), LoraSettings(dtype="float32", seed=3)
    plain, compiled = (
        LoraModel(model_dir, settings),
        LoraModel(model_dir, settings.model_copy(update={"compile": True})),
    )
    with torch.no_grad():
        for weight in plain.weights.values():
            weight.add_(0.02 * torch.randn_like(weight))
        for name, weight in compiled.weights.items():
            weight.copy_(plain.weights[name])
    plain.use(plain.weights)
    compiled.use(compiled.weights)
    prompts = [f"How many letters has {word * n}?" for n in (1, 3, 9) for word in ("a", "be", "sea")]
    data = plain.render([Example(task="letters", prompt=prompt, answer="many") for prompt in prompts], 256, "letters")
    for batch in ([0], [1, 8], [2, 3, 4, 5, 6]):
        plain.clear_gradients()
        compiled.clear_gradients()
        assert compiled.add_gradients(data, batch) == pytest.approx(plain.add_gradients(data, batch), rel=1e-5)
        for name, weight in plain.weights.items():
            torch.testing.assert_close(compiled.weights[name].grad, weight.grad, rtol=1e-4, atol=1e-6)
    assert compiled.accuracy(data, "compiled") == plain.accuracy(data, "plain")


@pytest.fixture
def nothing_kept() -> Iterator[None]:
    """What torch generated in this process or another is not used again, so that it may come out otherwise."""
    torch._dynamo.reset()
    with torch._inductor.config.patch(force_disable_caches=True):
        yield


def routed(model_dir: Path, dtype: str) -> RoutedModel:
    """Two tasks' experts above one trunk layer: the first one's frozen, the second one's to be trained."""
    model = RoutedModel(Backbone.load(model_dir, dtype), 1, SETTINGS.targets)
    for task, density in enumerate((0.3, 0.6)):
        rng = random.Random(task)
        grids = {
            site: [d // SETTINGS.block_size for d in found.base.weight.shape] for site, found in model.sites.items()
        }
        blocks = [(*site, row, column) for site, (r, c) in grids.items() for row in range(r) for column in range(c)]
        chosen = frozenset(block for block in blocks if rng.random() < density)
        expert = new_expert(model, chosen, SETTINGS)
        generator = torch.Generator().manual_seed(task)
        for delta in expert.values():
            nn.init.normal_(delta.b, std=0.1, generator=generator)
        model.add(str(task), expert, [task])
    model.freeze("0")
    return model


@torch.no_grad()
def prepared(model: RoutedModel) -> Prepared:
    """Prompts of several lengths. Each begins with the first task and goes on with the second, but for two."""
    prompts = [f"How many letters has {word * n}?" for n in (1, 3, 9, 20) for word in ("a", "be", "sea")]
    examples = [Example(task="letters", prompt=prompt, answer="many") for prompt in prompts]
    tokens = render_all(model.backbone, examples, 256, "letters")[0]
    trunk = trunk_outputs(model.backbone, [found.ids[:-1] for found in tokens], 1, "letters")
    weights = [torch.zeros(len(found), 2) for found in trunk]
    for index, found in enumerate(weights):
        found[2 + index :, 1] = 1
        found[2 : 2 + index, 0] = 1
    weights[0][:, 1], weights[1][:] = 0, 0
    return Prepared(tokens, trunk, [], weights)


def gradients(model: RoutedModel, data: Prepared, batch: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean NLL, and its gradients that are not None."""
    model.backbone.model.zero_grad()
    weights = dict(model.backbone.model.named_parameters())
    for (layer, target), site in model.sites.items():
        for name, parameter in site.deltas["1"].named_parameters():
            parameter.grad = None
            weights[f"{layer}.{target}.{name}"] = parameter
    nll = backward_nll(model, data, batch, [data.weights[i] for i in batch], 1, ALONE)
    return nll, {name: weight.grad for name, weight in weights.items() if weight.grad is not None}


BATCHES = ([2, 3, 4, 5, 6, 7, 8, 9], [10, 11], [9], [0, 2, 4], [0, 1], [3, 3, 5, 5, 7, 7, 9, 9, 11, 11, 2, 4])


@needs_compiler
def test_the_method_computes_the_same_with_compiled_layers(tmp_path: Path) -> None:
    """The experts' gradients, in batches with two tasks, one and none; those of the base weights, as for the scores."""
    model_dir = make_tiny_model(tmp_path)
    plain, compiled = routed(model_dir, "float32"), routed(model_dir, "float32")
    compiled.compile_layers(has_single_rows=True)
    data = prepared(plain)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for is_scoring in (False, True):
            for model in (plain, compiled):
                for site in model.sites.values():
                    site.base.weight.requires_grad_(is_scoring)
            for batch in BATCHES:
                nll, expected = gradients(plain, data, batch)
                found_nll, found = gradients(compiled, data, batch)
                torch.testing.assert_close(found_nll, nll, rtol=1e-5, atol=0)
                assert found.keys() == expected.keys() and bool(expected) == (is_scoring or batch != [0, 1])
                for name, gradient in expected.items():
                    torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6, msg=f"{name} of {batch}")


@needs_compiler
@pytest.mark.usefixtures("nothing_kept")
def test_the_order_of_batches_does_not_change_a_bit(tmp_path: Path) -> None:
    """What is compiled does not depend on the batch that comes first."""
    model_dir = make_tiny_model(tmp_path / "model")
    seen: list[list[dict[str, Tensor]]] = []
    for number, batches in enumerate((BATCHES[:2], BATCHES[1::-1])):
        torch._dynamo.reset()
        model = routed(model_dir, "bfloat16")
        model.compile_layers()
        data = prepared(model)
        found = [gradients(model, data, batch)[1] for batch in batches]
        seen.append(found if number == 0 else found[::-1])
    for one, other in zip(*seen, strict=True):
        assert one and all(torch.equal(gradient, other[name]) for name, gradient in one.items())


@needs_compiler
@pytest.mark.usefixtures("nothing_kept")
def test_learning_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after two steps of the second task; the next process has nothing of what the first one compiled."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1790000000")
    prompts = general_prompts()[:40]
    monkeypatch.setattr("adapters.learner.general_prompts", lambda: prompts)
    model, run = str(make_tiny_model(tmp_path / "model")), RunSettings(checkpoint_seconds=0, compile=True)

    def learn(bank: str) -> dict[str, bytes]:
        learn_tasks(tmp_path / bank, model, TRAIN, TEST, QUICK.model_copy(update={"steps": 4}), run)
        return {
            str(p.relative_to(tmp_path / bank)): p.read_bytes() for p in (tmp_path / bank).rglob("*") if p.is_file()
        }

    whole = learn("whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        advance = Fitting.advance

        def dying(fitting: Fitting) -> int:
            if "sums.unique" in fitting.model.experts and fitting.step == 2:
                raise Killed
            return advance(fitting)

        patch.setattr(Fitting, "advance", dying)
        learn("killed")
    torch._dynamo.reset()
    assert learn("killed") == whole
