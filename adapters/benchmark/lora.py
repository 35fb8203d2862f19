"""A backbone with PEFT's LoRA layers, trained the way the experts are: bfloat16 passes, float32 master weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from adapters.backbone import Backbone
from adapters.benchmark.settings import LoraSettings
from adapters.data import Example, Tokens
from adapters.examples import Prepared, render_all
from adapters.progress import track
from adapters.trunk import batches_by_length, pad_ids

EVAL_BATCH_TOKENS = 4096
MICRO_BATCH = 4
TRAINED, PAST = "trained", "past"
Weights = dict[str, nn.Parameter]
Past = Mapping[str, Tensor]
"""Frozen LoRA matrices by the names of the trained ones: A `[k r, d_in]`, B `[d_out, k r]` of k adapters added up."""


class LoraModel:
    """`weights`: the float32 LoRA matrices by name, what the optimiser steps; PEFT's own copy is what computes."""

    def __init__(self, model_dir: Path, settings: LoraSettings, past: Past | None = None) -> None:
        self.backbone = Backbone.load(model_dir, settings.dtype)
        self._inject(TRAINED, settings, 1)
        named = dict(self.backbone.model.named_parameters())
        self.working = {name: weight for name, weight in named.items() if f".{TRAINED}." in name}
        self.weights: Weights = {
            name: nn.Parameter(weight.detach().float().clone()) for name, weight in self.working.items()
        }
        self.reset(settings.seed)
        if past:
            self._add_past(past, settings)
        if settings.compile:
            self.backbone.compile_layers()

    @property
    def num_parameters(self) -> int:
        return sum(weight.numel() for weight in self.weights.values())

    def reset(self, seed: int) -> None:
        """A as PEFT starts it, from `seed`; B = 0."""
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.weights.items():
            if ".lora_A." in name:
                nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
            else:
                nn.init.zeros_(weight)
        self.use(self.weights)

    @torch.no_grad()
    def use(self, weights: Mapping[str, Tensor]) -> None:
        """Compute with these weights from now on."""
        for name, working in self.working.items():
            working.copy_(weights[name])

    def render(self, examples: Sequence[Example], max_tokens: int, what: str) -> Prepared:
        """Token ids; examples that are too long are left out, as everywhere. Raises DataError if none is left."""
        return Prepared(render_all(self.backbone, examples, max_tokens, what)[0], [], [], [])

    def output(self, data: Prepared, batch: Sequence[int]) -> Tensor:
        """The last layer's output `[B, T, d]`; the last answer token predicts nothing and is left out."""
        ids = pad_ids([data.tokens[i].ids[:-1] for i in batch])
        return self.backbone.run(self.backbone.embed(ids), 0, self.backbone.num_layers)

    def normed_output(self, data: Prepared, batch: Sequence[int]) -> Tensor:
        """What the head reads: `output` after the final norm."""
        return self.backbone.model.model.norm(self.output(data, batch))

    def answer_logits(self, data: Prepared, batch: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Rows `[n]`, logits `[n, vocab]` and labels `[n]` of the answers' tokens; no other logits are computed."""
        rows, positions, labels = data.targets(batch)
        return rows, self.backbone.logits(self.output(data, batch)[rows, positions]), labels

    def add_gradients(self, data: Prepared, batch: Sequence[int], scale: float = 1.0) -> float:
        """Add the gradient of `scale` times the batch's mean NLL to the master weights'; returns that mean NLL.

        The batch goes through the model in pieces of similar length: the same gradient, with less padding.
        """
        count = sum(len(data.tokens[i].answer) for i in batch)
        total = 0.0
        for piece in pieces(data.tokens, batch):
            _, logits, labels = self.answer_logits(data, piece)
            loss = nn.functional.cross_entropy(logits.float(), labels, reduction="sum") / count
            (loss * scale).backward()
            self.collect_gradients()
            total += float(loss.detach())
        return total

    def clear_gradients(self) -> None:
        for weight in self.weights.values():
            weight.grad = None

    @torch.no_grad()
    def collect_gradients(self) -> None:
        """Move the gradients of PEFT's copy to the master weights."""
        for name, working in self.working.items():
            if working.grad is None:
                continue
            gradient = working.grad.float()
            master = self.weights[name]
            master.grad = gradient if master.grad is None else master.grad.add_(gradient)
            working.grad = None

    @torch.no_grad()
    def accuracy(self, data: Prepared, what: str) -> float:
        """Exact match in percent points, by the rule of `adapters.evaluate.score_task`."""
        lengths = [len(tokens.ids) for tokens in data.tokens]
        wrong = 0
        for batch in track(list(batches_by_length(lengths, EVAL_BATCH_TOKENS)), f"evaluating {what}", unit="batches"):
            rows, logits, labels = self.answer_logits(data, batch)
            wrong += len(set(rows[logits.argmax(-1) != labels].tolist()))
        return 100 * (len(data) - wrong) / len(data)

    def _inject(self, adapter: str, settings: LoraSettings, count: int) -> None:
        """`count` adapters of the settings' rank as one: the same alpha / rank."""
        config = LoraConfig(
            r=count * settings.rank,
            lora_alpha=count * settings.alpha,
            lora_dropout=0.0,
            target_modules=list(settings.targets),
        )
        inject_adapter_in_model(config, self.backbone.model, adapter)

    @torch.no_grad()
    def _add_past(self, past: Past, settings: LoraSettings) -> None:
        first = next(name for name in past if ".lora_A." in name)
        self._inject(PAST, settings, len(past[first]) // settings.rank)
        named = dict(self.backbone.model.named_parameters())
        for name, matrix in past.items():
            frozen = named[name.replace(f".{TRAINED}.", f".{PAST}.")]
            frozen.copy_(matrix)
        for layer in (module for module in self.backbone.model.modules() if isinstance(module, LoraLayer)):
            layer.set_adapter([TRAINED, PAST])
        for name, weight in named.items():
            weight.requires_grad_(name in self.working)


def pieces(tokens: Sequence[Tokens], batch: Sequence[int]) -> list[list[int]]:
    """The batch in pieces of at most `MICRO_BATCH` examples of similar length."""
    ordered = sorted(batch, key=lambda index: len(tokens[index].ids))
    return [ordered[start : start + MICRO_BATCH] for start in range(0, len(ordered), MICRO_BATCH)]
