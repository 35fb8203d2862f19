"""Compiled decoder layers, without compiling any: what is refused, and where they are used. `tests/chaos` compiles."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from adapters import backbone as backbone_module
from adapters.backbone import Backbone
from adapters.compiled import check_compiler
from tests.adapters.learning import TRAIN
from tests.adapters.test_cli import expect_one_line, seta, write_tasks


@pytest.mark.parametrize("name", ["g++", "my-c++"])
def test_without_a_compiler_nothing_is_made(
    name: str, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    if name != "g++":
        monkeypatch.setenv("CXX", name)
    task = write_tasks(tmp_path / "train.jsonl", TRAIN)
    result = seta("learn", "--bank", tmp_path / "bank", "--model", tiny_model, "--task", task, "--compile")
    expect_one_line(result, "takes a C++ compiler", f"{name!r} is not found; install g++ or set CXX")
    assert not (tmp_path / "bank").exists()


def test_a_compiler_is_where_torch_looks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "my-c++"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    for found in (compiler.name, str(compiler)):
        monkeypatch.setenv("CXX", found)
        check_compiler()


def test_compiled_layers_run_where_a_gradient_is_taken(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trunk outputs, evaluation and decoding are those of layers that are not compiled."""
    seen: list[torch.Size] = []

    def watched(layer: torch.nn.Module):  # type: ignore[no-untyped-def]
        def call(hidden: Tensor, **named: object) -> Tensor:
            seen.append(hidden.shape)
            return layer(hidden, **named)  # type: ignore[no-any-return]

        return call

    monkeypatch.setattr(backbone_module, "compiled", lambda layers: [watched(layer) for layer in layers])
    backbone = Backbone.load(Path(tiny_model))
    hidden = torch.randn(2, 5, 128, dtype=backbone.dtype)
    expected = backbone.run(hidden, 1, 4)
    backbone.compile_layers(has_single_rows=True)
    assert [shape[0] for shape in seen] == [8, 1], "compiled for examples, before any batch"
    seen.clear()
    with torch.no_grad():
        assert torch.equal(backbone.run(hidden, 1, 4), expected)
    backbone.run(hidden, 1, 4, cache=DynamicCache())
    assert seen == []
    found = backbone.run(hidden, 1, 4)
    assert torch.equal(found, expected) and seen == [hidden.shape] * 3
    assert found.requires_grad and not hidden.requires_grad
