"""The fingerprint: bound to the weights and the shape, not to the files; every broken directory is a typed error."""

import hashlib
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from adapters import base_model
from adapters.base_model import INDEX, PAGE_BYTES, PAGES, WEIGHTS, ModelNotFound, NotAModel, fingerprint

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "model.norm.weight": torch.randn(128, generator=generator),
        "model.embed.weight": torch.randn(512, 128, generator=generator).bfloat16(),
        "model.empty": torch.zeros(0, 4),
        "model.scalar": torch.tensor(3.0),
    }


def write_model(directory: Path, tensors: dict[str, torch.Tensor], config: dict | None = None) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config or CONFIG))
    save_file(tensors, directory / WEIGHTS)
    return directory


def write_shards(directory: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """One tensor a shard, in an order that is not the names'."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    weight_map = {}
    for number, name in enumerate(reversed(sorted(tensors))):
        weight_map[name] = f"model-{number:05d}.safetensors"
        save_file({name: tensors[name]}, directory / weight_map[name], metadata={"format": "pt"})
    (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return directory


def slow_digest(tensors: dict[str, torch.Tensor]) -> str:
    """The definition, on whole tensors in memory."""
    names = {torch.float32: "F32", torch.bfloat16: "BF16"}
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        content = tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        pages = [content[i : i + PAGE_BYTES] for i in range(0, len(content), PAGE_BYTES)]
        if len(pages) > PAGES:
            pages = [pages[math.floor(i * (len(pages) - 1) / (PAGES - 1))] for i in range(PAGES)]
        digest.update(f"{name} {names[tensor.dtype]} {list(tensor.shape)}\n".encode() + b"".join(pages))
    return digest.hexdigest()


def test_equals_the_slow_reference(tmp_path):
    info = fingerprint(write_model(tmp_path, weights()))
    assert info.weights_sha256 == slow_digest(weights())


def test_shapes_come_from_the_config(tmp_path):
    info = fingerprint(write_model(tmp_path, weights()))
    assert (info.architecture, info.num_layers, info.vocab_size) == ("LlamaForCausalLM", 2, 512)
    assert (info.num_attention_heads, info.num_kv_heads, info.head_size) == (4, 2, 32)
    assert info.target_dims("v_proj") == (64, 128)


def test_config_defaults_and_explicit_head_dim(tmp_path):
    config = {key: value for key, value in CONFIG.items() if key != "num_key_value_heads"} | {"head_dim": 64}
    info = fingerprint(write_model(tmp_path, weights(), config))
    assert (info.num_kv_heads, info.head_size) == (4, 64)


def test_sharding_is_not_part_of_it(tmp_path):
    whole, shards = write_model(tmp_path / "whole", weights()), write_shards(tmp_path / "shards", weights())
    assert fingerprint(whole) == fingerprint(shards)


@given(element=st.integers(0, 511), tensor=st.sampled_from(["model.norm.weight", "model.embed.weight"]))
@settings(max_examples=25, deadline=None)
def test_a_changed_row_changes_it(tmp_path_factory, element, tensor):
    """Every row of a small tensor; in a tensor of 32 pages, the change of all rows that a fine-tune makes."""
    changed = weights()
    if tensor == "model.norm.weight":
        changed[tensor][element % 128] += 1
    else:
        changed[tensor] *= 1 + 2.0 ** -(1 + element % 6)
    here = write_model(tmp_path_factory.mktemp("base"), weights())
    there = write_model(tmp_path_factory.mktemp("changed"), changed)
    assert fingerprint(here).weights_sha256 != fingerprint(there).weights_sha256


@pytest.mark.parametrize("change", ["rename", "dtype", "shape", "drop"])
def test_name_dtype_and_shape_are_part_of_it(tmp_path, change):
    changed = weights()
    norm = changed.pop("model.norm.weight")
    if change != "drop":
        key = "model.other.weight" if change == "rename" else "model.norm.weight"
        changed[key] = {"dtype": norm.view(torch.int32), "shape": norm.view(2, 64)}.get(change, norm)
    here, there = write_model(tmp_path / "a", weights()), write_model(tmp_path / "b", changed)
    assert fingerprint(here).weights_sha256 != fingerprint(there).weights_sha256


def test_reads_pages_not_files(tmp_path, monkeypatch):
    """A model of 64 MB costs less than 100 KB of reads beyond its header."""
    directory = write_model(tmp_path, {"big": torch.zeros(16 << 20)})
    read, pread = [], base_model.os.pread
    monkeypatch.setattr(base_model.os, "pread", lambda fd, n, offset: read.append(n) or pread(fd, n, offset))
    fingerprint(directory)
    assert sum(read) == PAGES * PAGE_BYTES


def truncate(model: Path) -> None:
    content = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(content[:-1])


def rewrite_header(model: Path, change) -> None:
    content = (model / WEIGHTS).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = change(json.loads(content[8 : 8 + length]))
    encoded = json.dumps(header).encode()
    (model / WEIGHTS).write_bytes(len(encoded).to_bytes(8, "little") + encoded + content[8 + length :])


def escape(model: Path) -> None:
    (model / WEIGHTS).rename(model.parent / "outside.safetensors")
    (model / INDEX).write_text(json.dumps({"weight_map": {"x": "../outside.safetensors"}}))


def twice(model: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        (model / name).write_bytes((model / WEIGHTS).read_bytes())
    (model / WEIGHTS).unlink()
    (model / INDEX).write_text(json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}))


def without(key: str):
    return lambda model: (model / "config.json").write_text(json.dumps({k: v for k, v in CONFIG.items() if k != key}))


BROKEN = {
    "no config": (lambda m: (m / "config.json").unlink(), "no config.json"),
    "config is no JSON": (lambda m: (m / "config.json").write_text("{"), "cannot be read as JSON"),
    "config is a list": (lambda m: (m / "config.json").write_text("[]"), "JSON object"),
    "no heads": (without("num_attention_heads"), "num_attention_heads"),
    "no architecture": (without("architectures"), "architectures"),
    "zero heads": (lambda m: (m / "config.json").write_text(json.dumps(CONFIG | {"num_attention_heads": 0})), "config"),
    "no weights": (lambda m: (m / WEIGHTS).unlink(), f"neither {WEIGHTS} nor"),
    "truncated": (truncate, "outside the file"),
    "empty file": (lambda m: (m / WEIGHTS).write_bytes(b""), "cut short"),
    "huge header": (lambda m: (m / WEIGHTS).write_bytes(b"\xff" * 64), "cut short"),
    "header is no JSON": (lambda m: (m / WEIGHTS).write_bytes((8).to_bytes(8, "little") + b"not json"), "safetensors"),
    "header is a list": (lambda m: rewrite_header(m, lambda h: []), "no JSON object"),
    "entry without dtype": (lambda m: rewrite_header(m, lambda h: {"x": {"shape": []}}), "malformed"),
    "entry is a number": (lambda m: rewrite_header(m, lambda h: {"x": 3}), "malformed"),
    "no tensor": (lambda m: rewrite_header(m, lambda h: {}), "no tensor"),
    "index without map": (lambda m: ((m / WEIGHTS).unlink(), (m / INDEX).write_text("{}")), "weight_map"),
    "index escapes": (escape, "names '../outside.safetensors'"),
    "tensor twice": (twice, "both in"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_not_a_model(tmp_path, case):
    break_it, message = BROKEN[case]
    model = write_model(tmp_path / "model", weights())
    break_it(model)
    with pytest.raises(NotAModel, match=message):
        fingerprint(model)


@given(junk=st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_a_model_or_a_typed_error(tmp_path_factory, junk):
    model = tmp_path_factory.mktemp("junk")
    (model / "config.json").write_text(json.dumps(CONFIG))
    (model / WEIGHTS).write_bytes(min(len(junk), 190).to_bytes(8, "little") + junk)
    with pytest.raises(NotAModel):
        fingerprint(model)


def test_resolves_a_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert base_model.resolve_model_dir("here") == (tmp_path / "here").resolve()


@pytest.mark.parametrize("model", ["./nowhere", "/no/where", "~/no-such-directory", "a/b/c"])
def test_a_path_that_is_not_there(model):
    with pytest.raises(ModelNotFound, match="no directory"):
        base_model.resolve_model_dir(model)


def test_hub_while_offline(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelNotFound, match=r"'org/model'.*could not be had.*network"):
        base_model.resolve_model_dir("org/model")


def test_a_name_the_hub_cannot_have(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFound, match="check the spelling"):
        base_model.resolve_model_dir("no spaces/allowed")
