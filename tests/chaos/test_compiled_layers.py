"""The benchmark's LoRA with compiled decoder layers: the same losses, gradients and answers. Slow: it compiles."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from adapters.benchmark.lora import LoraModel
from adapters.benchmark.settings import LoraSettings
from adapters.data import Example
from tests.tiny import make_tiny_model


@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")
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
