"""PEFT's directories read and written: what PEFT itself makes of them is the reference."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.bank import BaseModelInfo
from adapters.base_model import fingerprint
from adapters.blocks import Site
from adapters.lora.config import LoraError
from adapters.lora.files import LoraDelta, module_name, read_adapter, write_adapter

from ..bank.factory import BASE
from .factory import SITES, load_base, load_peft, lora_tensors, train_like_peft, write_lora

V_1 = "base_model.model.model.layers.1.self_attn.v_proj.lora_"
FULL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MADE_BY_PEFT: dict[str, dict[str, Any]] = {
    "plain": {},
    "every projection": {"target_modules": FULL},
    "rank-stabilised": {"use_rslora": True},
    "ranks and alphas by pattern": {
        "target_modules": ["v_proj", "down_proj"],
        "rank_pattern": {"layers.2.self_attn.v_proj": 7, "down_proj": 1},
        "alpha_pattern": {"^model.layers.3.mlp.down_proj": 5, "v_proj": 3},
        "use_rslora": True,
    },
}


@pytest.fixture(scope="module")
def model(tiny_model: str) -> Path:
    return Path(tiny_model)


@pytest.fixture(scope="module")
def base(model: Path) -> BaseModelInfo:
    return fingerprint(model)


def weights(model: Any) -> dict[Site, torch.Tensor]:
    found = dict(model.named_parameters())
    return {(i, t): found[f"{module_name((i, t))}.weight"].detach().double() for i in range(4) for t in FULL}


@pytest.mark.parametrize("how", MADE_BY_PEFT)
def test_the_deltas_are_what_peft_merges_into_the_weights(
    how: str, model: Path, base: BaseModelInfo, tmp_path: Path
) -> None:
    train_like_peft(model, tmp_path / "lora", **MADE_BY_PEFT[how])
    adapter = read_adapter(tmp_path / "lora", base)
    before = weights(load_base(model))
    merged = weights(load_peft(model, tmp_path / "lora").merge_and_unload())
    for site, weight in before.items():
        delta = adapter.deltas[site].dense() if site in adapter.deltas else torch.zeros_like(weight)
        torch.testing.assert_close(weight + delta, merged[site], atol=1e-5, rtol=1e-5)
    assert adapter.layers == [1, 2, 3]
    assert set(adapter.targets) == set(MADE_BY_PEFT[how].get("target_modules", ["v_proj"]))


def test_peft_loads_what_is_written(model: Path, base: BaseModelInfo, tmp_path: Path) -> None:
    """Several ranks in one adapter: PEFT's merged weights are W0 + B A everywhere."""
    generator = torch.Generator().manual_seed(0)
    deltas = {}
    for site, rank in {(1, "v_proj"): 3, (3, "v_proj"): 5, (3, "down_proj"): 2}.items():
        d_out, d_in = base.target_dims(site[1])  # type: ignore[arg-type]
        a, b = torch.randn(rank, d_in, generator=generator), torch.randn(d_out, rank, generator=generator)
        deltas[site] = LoraDelta(a, b)
    write_adapter(tmp_path / "lora", deltas, "org/model")
    before, merged = weights(load_base(model)), weights(load_peft(model, tmp_path / "lora").merge_and_unload())
    for site, weight in before.items():
        delta = deltas[site].dense() if site in deltas else torch.zeros_like(weight)
        torch.testing.assert_close(weight + delta, merged[site], atol=1e-4, rtol=1e-4)
    again = read_adapter(tmp_path / "lora", base)
    assert again.base_model == "org/model"
    for site, delta in again.deltas.items():
        assert delta.scale == 1.0 and torch.equal(delta.a, deltas[site].a) and torch.equal(delta.b, deltas[site].b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in lora_tensors(BASE, SITES).items()}
    delta = read_adapter(write_lora(tmp_path, tensors), BASE).deltas[1, "v_proj"]
    assert torch.equal(delta.a, tensors[f"{V_1}A.weight"].float()) and delta.scale == 2.0


def test_names_of_an_adapter_called_default_are_read(tmp_path: Path) -> None:
    tensors = {name.replace(".weight", ".default.weight"): tensor for name, tensor in lora_tensors(BASE, SITES).items()}
    assert read_adapter(write_lora(tmp_path, tensors), BASE).layers == [1, 2, 3]
    tensors[f"{V_1}A.weight"] = tensors[f"{V_1}A.default.weight"].clone()
    with pytest.raises(LoraError, match="twice"):
        read_adapter(write_lora(tmp_path, tensors), BASE)


def test_projections_without_a_delta_do_not_count(tmp_path: Path) -> None:
    """PEFT starts with B = 0: what was never trained changes nothing."""
    tensors = lora_tensors(BASE, [(0, "v_proj"), *SITES])
    tensors[f"{V_1}B.weight"].zero_()
    tensors["base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight"].zero_()
    assert read_adapter(write_lora(tmp_path, tensors), BASE).layers == [2, 3]
    for tensor in tensors.values():
        tensor.zero_()
    with pytest.raises(LoraError, match="changes nothing"):
        read_adapter(write_lora(tmp_path, tensors), BASE)
    with pytest.raises(LoraError, match="changes nothing"):
        read_adapter(write_lora(tmp_path, lora_tensors(BASE, SITES), lora_alpha=0), BASE)


def renamed(old: str, new: str) -> dict[str, torch.Tensor]:
    return {name.replace(old, new): tensor for name, tensor in lora_tensors(BASE, SITES).items()}


def changed(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    return lora_tensors(BASE, SITES) | {name: tensor}


NAN = torch.zeros(2, 16).index_fill(1, torch.tensor([3]), float("nan"))
BAD_TENSORS = {
    "the head": (changed("base_model.model.lm_head.lora_A.weight", torch.ones(2, 16)), "lm_head"),
    "a target that is none": (renamed("v_proj", "w_proj"), "w_proj"),
    "a target in the wrong place": (renamed("self_attn", "mlp"), "mlp.v_proj"),
    "another prefix": (renamed("base_model.model.", ""), "expected only lora_A and lora_B"),
    "an embedding's delta": (renamed("lora_A", "lora_embedding_A"), "lora_embedding_A"),
    "a magnitude": (changed(f"{V_1}magnitude_vector", torch.ones(8)), "magnitude_vector"),
    "a layer too many": (renamed("layers.3", "layers.4"), "last layer is 3"),
    "no A": ({n: t for n, t in lora_tensors(BASE, SITES).items() if n != f"{V_1}A.weight"}, "has no lora_A"),
    "another rank than configured": (changed(f"{V_1}A.weight", torch.ones(3, 16)), "[3, 16], expected [2, 16]"),
    "another model's size": (changed(f"{V_1}B.weight", torch.ones(12, 2)), "[12, 2], expected [8, 2]"),
    "one axis only": (changed(f"{V_1}A.weight", torch.ones(32)), "[32], expected [2, 16]"),
    "NaN": (changed(f"{V_1}A.weight", NAN), "NaN"),
    "infinity": (changed(f"{V_1}B.weight", torch.full((8, 2), float("inf"))), "infinity"),
    "integers": (changed(f"{V_1}A.weight", torch.ones(2, 16, dtype=torch.int8)), "is I8, expected one of"),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_tensors_that_no_expert_can_carry_are_refused(name: str, tmp_path: Path) -> None:
    tensors, reason = BAD_TENSORS[name]
    with pytest.raises(LoraError) as error:
        read_adapter(write_lora(tmp_path, tensors), BASE)
    assert reason in str(error.value) and "\n" not in str(error.value)


def test_pickles_are_refused_and_never_opened(tmp_path: Path) -> None:
    write_lora(tmp_path, lora_tensors(BASE, SITES))
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(LoraError, match=r"adapter_model.bin, a pickle.*save_pretrained writes"):
        read_adapter(tmp_path, BASE)


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"PK\x03\x04" + b"x" * 100, (1 << 40).to_bytes(8, "little")])
def test_damaged_weights_are_refused(content: bytes, tmp_path: Path) -> None:
    write_lora(tmp_path, lora_tensors(BASE, SITES))
    (tmp_path / "adapter_model.safetensors").write_bytes(content)
    with pytest.raises(LoraError, match="save the adapter again|holds 0 tensors"):
        read_adapter(tmp_path, BASE)


def test_missing_and_huge_weights_are_refused(tmp_path: Path) -> None:
    write_lora(tmp_path, lora_tensors(BASE, SITES))
    weights_path = tmp_path / "adapter_model.safetensors"
    with weights_path.open("r+b") as file:
        file.truncate((4 << 30) + 1)
    with pytest.raises(LoraError, match="at most 4294967296 are read"):
        read_adapter(tmp_path, BASE)
    weights_path.unlink()
    with pytest.raises(LoraError, match="cannot be read"):
        read_adapter(tmp_path, BASE)


def test_writing_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    delta = {(1, "v_proj"): LoraDelta(torch.ones(1, 16), torch.ones(8, 1))}
    write_adapter(tmp_path / "lora", delta, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lora"]
    assert sorted(path.name for path in (tmp_path / "lora").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert (tmp_path / "lora").stat().st_mode & 0o777 == 0o755
    before = load_file(tmp_path / "lora/adapter_model.safetensors")
    with pytest.raises(LoraError, match="exists; remove it"):
        write_adapter(tmp_path / "lora", delta, None)
    assert torch.equal(before[f"{V_1}A.weight"], torch.ones(1, 16))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("adapters.lora.files.save_file", full)
    with pytest.raises(LoraError, match="No space left"):
        write_adapter(tmp_path / "other", delta, None)
    with pytest.raises(LoraError, match="cannot be made"):
        write_adapter(tmp_path / "no" / "other", delta, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lora"]
    assert save_file is not full
