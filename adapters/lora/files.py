"""A PEFT LoRA's directory, read strictly and written plainly; safetensors only, never pickle."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from adapters.bank import TARGETS, BaseModelInfo, Target
from adapters.blocks import Site
from adapters.lora.config import CONFIG_NAME, LoraConfig, LoraError, read_config

WEIGHTS_NAME = "adapter_model.safetensors"
PICKLE_NAME = "adapter_model.bin"
MAX_WEIGHTS_BYTES = 4 << 30
MAX_TENSORS = 1 << 16
DTYPES = {"F32", "BF16", "F16"}
PREFIX = "base_model.model."

_NAME = re.compile(
    rf"{re.escape(PREFIX)}(model\.layers\.(0|[1-9][0-9]{{0,3}})\.(self_attn|mlp)\.([a-z_]{{1,16}}))"
    r"\.lora_([AB])(?:\.default)?\.weight"
)


@dataclass(frozen=True)
class LoraDelta:
    """`ΔW = scale · b a` on one projection: `a [r, d_in]`, `b [d_out, r]`, float32."""

    a: Tensor
    b: Tensor
    scale: float = 1.0

    def dense(self) -> Tensor:
        """ΔW `[d_out, d_in]`, float64."""
        return self.scale * (self.b.double() @ self.a.double())


Deltas = dict[Site, LoraDelta]


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter: its deltas that are not zero, by (layer, target), and the base model it names."""

    deltas: Deltas
    base_model: str | None

    @property
    def layers(self) -> list[int]:
        return sorted({layer for layer, _ in self.deltas})

    @property
    def targets(self) -> tuple[Target, ...]:
        """In the bank's own order."""
        return tuple(target for target in TARGETS if any(target == found for _, found in self.deltas))


def module_name(site: Site) -> str:
    layer, target = site
    return f"model.layers.{layer}.{'mlp' if target in ('gate_proj', 'up_proj', 'down_proj') else 'self_attn'}.{target}"


def read_adapter(directory: Path, base: BaseModelInfo) -> Adapter:
    """Read a PEFT LoRA for a base model of these shapes; everything is checked. Raises LoraError."""
    config = read_config(directory)
    found: dict[Site, dict[str, Tensor]] = {}
    for name, tensor in _tensors(directory):
        site, part = _parse_name(name, base)
        if part in found.setdefault(site, {}):
            raise LoraError(f"{WEIGHTS_NAME} has {name!r} twice, with and without 'default'; save the adapter again")
        found[site][part] = tensor.float()
    deltas = {site: _delta(site, parts, config, base) for site, parts in sorted(found.items())}
    changing = {site: delta for site, delta in deltas.items() if delta.scale and delta.a.any() and delta.b.any()}
    if not changing:
        raise LoraError(f"the adapter in {directory} changes nothing: every delta is zero; train it first")
    return Adapter(changing, config.base_model_name_or_path)


def write_adapter(directory: Path, deltas: Mapping[Site, LoraDelta], base_model: str | None) -> None:
    """Write the deltas (their scales must be 1) as a PEFT LoRA, whole or not at all. Raises LoraError."""
    if os.path.lexists(directory):
        raise LoraError(f"{directory} exists; remove it, or choose another name")
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    except OSError as error:
        raise LoraError(f"{directory} cannot be made ({error.strerror}); check the path and its permissions") from None
    try:
        config = json.dumps(_config_of(deltas, base_model), indent=2, sort_keys=True) + "\n"
        (temporary / CONFIG_NAME).write_text(config, encoding="utf-8")
        save_file(_named(deltas), temporary / WEIGHTS_NAME, metadata={"format": "pt"})
        temporary.chmod(0o755)
        temporary.rename(directory)
    except (OSError, SafetensorError) as error:
        raise LoraError(f"{directory} cannot be written ({error}); check free space and permissions") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _tensors(directory: Path) -> list[tuple[str, Tensor]]:
    path = directory / WEIGHTS_NAME
    if not path.is_file() and (directory / PICKLE_NAME).is_file():
        raise LoraError(
            f"{directory} holds {PICKLE_NAME}, a pickle, which can run any code when it is read; expected "
            f"{WEIGHTS_NAME}. Where you trust its origin, load it with PEFT and save it again: save_pretrained writes "
            "safetensors"
        )
    try:
        size = path.stat().st_size
        if size > MAX_WEIGHTS_BYTES:
            raise LoraError(f"{path} has {size} bytes, at most {MAX_WEIGHTS_BYTES} are read")
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if not 0 < len(names) <= MAX_TENSORS:
                raise LoraError(f"{path} holds {len(names)} tensors, expected 1 to {MAX_TENSORS}")
            strange = {name: dtype for name in names if (dtype := file.get_slice(name).get_dtype()) not in DTYPES}
            for name, dtype in strange.items():
                raise LoraError(f"{path}: {name[:120]!r} is {dtype}, expected one of {', '.join(sorted(DTYPES))}")
            return [(name, file.get_tensor(name)) for name in names]
    except OSError as error:
        raise LoraError(f"{path} cannot be read ({error.strerror or error}); save the adapter again") from None
    except SafetensorError as error:
        raise LoraError(f"{path} is not a valid safetensors file ({error}); save the adapter again") from None


def _parse_name(name: str, base: BaseModelInfo) -> tuple[Site, str]:
    match = _NAME.fullmatch(name)
    layer, target = (int(match[2]), match[4]) if match else (0, "")
    if match is None or target not in TARGETS or match[1] != module_name((layer, target)):
        raise LoraError(
            f"{WEIGHTS_NAME} has {name[:120]!r}, expected only lora_A and lora_B of the decoder layers' "
            f"{', '.join(TARGETS)}: experts cannot carry anything else; train the LoRA on those alone"
        )
    if layer >= base.num_layers:
        raise LoraError(
            f"{WEIGHTS_NAME} has {name!r}, the base model's last layer is {base.num_layers - 1}; "
            "give the model that the adapter was trained on (--model)"
        )
    return (layer, target), match[5]


def _delta(site: Site, parts: Mapping[str, Tensor], config: LoraConfig, base: BaseModelInfo) -> LoraDelta:
    module = module_name(site)
    missing = {"A", "B"} - set(parts)
    if missing:
        raise LoraError(f"{WEIGHTS_NAME}: {module} has no lora_{missing.pop()}; save the adapter again")
    rank = config.rank_of(module)
    d_out, d_in = next(base.target_dims(target) for target in TARGETS if target == site[1])
    for part, shape in (("A", (rank, d_in)), ("B", (d_out, rank))):
        if tuple(parts[part].shape) != shape:
            raise LoraError(
                f"{WEIGHTS_NAME}: {module}.lora_{part} is {list(parts[part].shape)}, expected {list(shape)}: rank "
                f"{rank} by {CONFIG_NAME}, W0 [{d_out}, {d_in}]; give the model that it was trained on (--model)"
            )
        if not bool(torch.isfinite(parts[part]).all()):
            raise LoraError(f"{WEIGHTS_NAME}: {module}.lora_{part} holds NaN or infinity; train the adapter again")
    return LoraDelta(parts["A"], parts["B"], config.scale_of(module))


def _config_of(deltas: Mapping[Site, LoraDelta], base_model: str | None) -> dict[str, object]:
    """alpha = r everywhere, so that every scale is 1, for readers that know no patterns too."""
    ranks = {module_name(site): len(delta.a) for site, delta in sorted(deltas.items())}
    rank = max(ranks.values())
    smaller = {module: own for module, own in ranks.items() if own < rank}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": smaller,
        "alpha_pattern": smaller,
        "target_modules": list(ranks),
        "bias": "none",
        "lora_dropout": 0.0,
    }


def _named(deltas: Mapping[Site, LoraDelta]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for site, delta in deltas.items():
        assert delta.scale == 1.0
        stem = f"{PREFIX}{module_name(site)}.lora_"
        tensors[f"{stem}A.weight"] = delta.a.contiguous()
        tensors[f"{stem}B.weight"] = delta.b.contiguous()
    return tensors
