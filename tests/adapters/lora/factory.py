"""LoRA adapters on disk for tests: written by hand, or by PEFT itself on the tiny model."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from adapters.bank import BaseModelInfo
from adapters.blocks import Site
from adapters.lora.files import module_name

SITES: list[Site] = [(1, "v_proj"), (2, "v_proj"), (3, "v_proj")]
CONFIG: dict[str, Any] = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "bias": "none"}


def lora_tensors(base: BaseModelInfo, sites: list[Site], rank: int = 2, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for site in sites:
        d_out, d_in = base.target_dims(site[1])  # type: ignore[arg-type]
        stem = f"base_model.model.{module_name(site)}.lora_"
        tensors[f"{stem}A.weight"] = torch.randn(rank, d_in, generator=generator)
        tensors[f"{stem}B.weight"] = torch.randn(d_out, rank, generator=generator)
    return tensors


def write_lora(path: Path, tensors: dict[str, Tensor], **changes: Any) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "adapter_config.json").write_text(json.dumps(CONFIG | changes))
    save_file(tensors, path / "adapter_model.safetensors")
    return path


def load_base(model: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(model, dtype=dtype, attn_implementation="eager").eval()


def train_like_peft(model: Path, out: Path, scale: float = 0.3, **config: Any) -> Path:
    """An adapter that PEFT made and saved, its weights random and large enough to change every answer."""
    defaults: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["v_proj"], "layers_to_transform": [1, 2, 3]}
    torch.manual_seed(0)
    adapted = get_peft_model(load_base(model), LoraConfig(task_type="CAUSAL_LM", **(defaults | config)))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * scale)
    adapted.save_pretrained(out)
    return out


def load_peft(model: Path, adapter: Path, dtype: torch.dtype = torch.float32) -> Any:
    return PeftModel.from_pretrained(load_base(model, dtype), adapter).eval()
