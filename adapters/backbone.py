"""The frozen base model, cut at the trunk: run layers 0..m-1 once, layers m..L-1 as often as training needs.

The trunk carries no experts, so its output is the base model's for ever: it is computed once per example and cached,
and neither its forward nor its backward runs again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapters.compiled import EXAMPLE_ROWS, EXAMPLE_TOKENS, Layer, compiled

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class UnsupportedModel(ValueError):
    """The model is no decoder stack that this project knows how to cut."""


@dataclass
class Backbone:
    """A causal language model with frozen weights and its tokenizer.

    `compiled`: its layers as `compile_layers` made them, else empty.
    """

    model: Any
    tokenizer: Any
    compiled: list[Layer] = field(default_factory=list)

    @classmethod
    def load(cls, model_dir: Path, dtype: str = "bfloat16") -> Backbone:
        """Load from a local directory. Raises UnsupportedModel for anything but a plain decoder stack."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        # Eager attention: on short sequences several times faster than SDPA's backward on a CPU.
        model = AutoModelForCausalLM.from_pretrained(
            model_dir, dtype=DTYPES[dtype], attn_implementation="eager", local_files_only=True
        ).eval()
        tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
        return cls.wrap(model, tokenizer)

    @classmethod
    def wrap(cls, model: Any, tokenizer: Any) -> Backbone:
        kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"}:
            raise UnsupportedModel(f"layer types {sorted(kinds)} found; only full attention is supported")
        stack = getattr(model, "model", None)
        if not all(hasattr(stack, part) for part in ("layers", "embed_tokens", "rotary_emb", "norm")):
            raise UnsupportedModel(f"{type(model).__name__} is not a decoder stack like Llama, Qwen2 or Qwen3")
        model.requires_grad_(False)
        return cls(model, tokenizer)

    @property
    def layers(self) -> nn.ModuleList:
        return self.model.model.layers

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def context_tokens(self) -> int:
        """How many positions the model knows."""
        return int(self.model.config.max_position_embeddings)

    @property
    def eos_ids(self) -> set[int]:
        """The tokens that end a turn, as the server's engine knows them."""
        found = self.model.generation_config.eos_token_id
        ids = found if isinstance(found, list) else [found]
        return {i for i in [*ids, self.tokenizer.eos_token_id] if i is not None}

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids `[B, T]` → hidden states `[B, T, d]`."""
        return self.model.model.embed_tokens(ids)

    def compile_layers(self, has_single_rows: bool = False) -> None:
        """From now on layers are run compiled wherever a gradient is taken; all else stays as it is.

        Takes a minute or two the first time on a machine; torch keeps the result on disk. `has_single_rows`: whether
        there will be batches of one row. Raises DataError.
        """
        self.compiled = compiled(self.layers)
        for rows in (EXAMPLE_ROWS, 1) if has_single_rows else (EXAMPLE_ROWS,):
            shape = (rows, EXAMPLE_TOKENS, self.model.config.hidden_size)
            example = torch.zeros(shape, dtype=self.dtype, requires_grad=True)
            output = self.run(example, self.num_layers - 1, self.num_layers)
            torch.autograd.grad(output.sum(), example)

    def run(self, hidden: Tensor, start: int, stop: int, cache: Any = None, offset: int = 0) -> Tensor:
        """Decoder layers `start..stop-1` on hidden states `[B, T, d]`, causal, positions from `offset`.

        Sequences shorter than T are padded on the right: under a causal mask no real token sees a pad.
        """
        length = hidden.shape[1]
        position_ids = torch.arange(offset, offset + length).unsqueeze(0)
        rotary = self.model.model.rotary_emb(hidden, position_ids=position_ids)
        mask = _causal_mask(length, offset, hidden.dtype) if length > 1 else None
        layers: Sequence[Layer] = self.layers[start:stop]  # type: ignore[assignment]
        if self.compiled and cache is None and torch.is_grad_enabled():
            layers = self.compiled[start:stop]
            # Else the first layer with anything that learns would be compiled once more by itself.
            hidden = hidden if hidden.requires_grad else hidden.detach().requires_grad_()
        for layer in layers:
            hidden = layer(
                hidden,
                attention_mask=mask,
                position_ids=position_ids,
                position_embeddings=rotary,
                past_key_values=cache,
                use_cache=cache is not None,
            )
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm and head: `[..., d]` → `[..., vocab]`."""
        return self.model.lm_head(self.model.model.norm(hidden))

    def linear(self, layer: int, target: str) -> nn.Linear:
        """The frozen projection `target` of decoder layer `layer`, whether or not experts wrap it."""
        found = getattr(self._parent(layer, target), target)
        return getattr(found, "base", found)

    def replace(self, layer: int, target: str, module: nn.Module) -> None:
        setattr(self._parent(layer, target), target, module)

    def _parent(self, layer: int, target: str) -> nn.Module:
        block = self.layers[layer]
        return block.mlp if target in ("gate_proj", "up_proj", "down_proj") else block.self_attn  # type: ignore


def _causal_mask(length: int, offset: int, dtype: torch.dtype) -> Tensor:
    keys = torch.arange(offset + length)
    allowed = keys[None, :] <= torch.arange(offset, offset + length)[:, None]
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)[None, None]
