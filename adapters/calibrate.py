"""Once per base model: the gate's fixed parts, from general text.

The result is generation 0 of a bank, which knows only "base".

- `projection`: the principal directions of the trunk's output on general text;
- `content_weight`: a ridge regression that tells the chat template's tokens, which every prompt shares, from content;
- `base_mean`, `base_whitener`: where general text's prefix means lie. A prompt is known when it points, in that
  whitened space, to a task.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from adapters.backbone import Backbone
from adapters.data import read_prompts, render_chat
from adapters.evidence import Evidence, Gate, prefix_mean, rms_normalised
from adapters.gate import AnalyticGate
from adapters.routed import pool
from adapters.softmax_gate import SoftmaxGate
from adapters.trunk import trunk_outputs

MIN_CONTENT_TOKENS = 4
"""Prefix means over fewer content tokens say little; they are left out of every statistic."""


@dataclass(frozen=True)
class GateSettings:
    """What the paper leaves open about the gate; measured in `docs/log.md`.

    `width`: evidence values a token (at most what one layer's KV cache holds). `threshold`: the cosine above which a
    prompt is known. `sharpness`: slope of that test. `keep`: k of top-k.
    """

    width: int = 192
    threshold: float = 0.40
    sharpness: float = 50.0
    temperature: float = 1.0
    ridge: float = 0.05
    keep: int = 1


def general_prompts() -> list[str]:
    return read_prompts(Path(str(files("adapters").joinpath("general_prompts.jsonl"))))


def calibrate(
    backbone: Backbone, trunk_layers: int, kv_width: int, settings: GateSettings, prompts: list[str]
) -> AnalyticGate:
    """The gate of a bank without tasks; the pooling layer carries at most `kv_width = num_kv_heads x head_size`."""
    prefix, suffix = template_lengths(backbone)
    sequences = [render_chat(backbone.tokenizer, [{"role": "user", "content": prompt}]) for prompt in prompts]
    outputs = trunk_outputs(backbone, sequences, trunk_layers, "general prompts")
    features = [rms_normalised(hidden) for hidden in outputs]
    content = [_content_mask(len(f), prefix, suffix) for f in features]

    tokens, labels = torch.cat(features), torch.cat(content)
    centre = tokens.mean(0)
    width = min(settings.width, kv_width, tokens.shape[1])
    projection = torch.linalg.svd(tokens - centre, full_matrices=False).Vh[:width].T.contiguous()
    weight, bias = _ridge(tokens, labels)

    evidence = Evidence(projection, weight, bias)
    pooled = [
        prefix_mean(*evidence(hidden))[mask.cumsum(0) > MIN_CONTENT_TOKENS]
        for hidden, mask in zip(outputs, content, strict=True)
    ]
    samples = torch.cat(pooled).double()
    mean = samples.mean(0)
    covariance = (samples - mean).T @ (samples - mean) / len(samples)
    scalars = {
        name: torch.tensor([float(getattr(settings, name))])
        for name in ("threshold", "sharpness", "temperature", "ridge", "keep")
    }
    return AnalyticGate(
        projection=projection,
        content_weight=weight,
        content_bias=bias,
        base_mean=mean.float(),
        base_whitener=_whitener(covariance, settings.ridge),
        count=torch.zeros(0),
        mean=torch.zeros(0, width),
        scatter=torch.zeros(width, width),
        **scalars,
    )


def softmax_gate(fixed: AnalyticGate) -> SoftmaxGate:
    """The other kind of gate of a bank without tasks: the same fixed parts, and base's row."""
    width = fixed.width
    return SoftmaxGate(
        **{name: getattr(fixed, name) for name in ("projection", "content_weight", "content_bias")},
        base_mean=fixed.base_mean,
        base_whitener=fixed.base_whitener,
        membership=torch.zeros(0, 0),
        weight=torch.zeros(1, width),
        bias=torch.zeros(1),
        keep=fixed.keep,
    )


def general_features(backbone: Backbone, trunk_layers: int, gate: Gate, prompts: list[str]) -> Tensor:
    """Prefix means over general text, every position of it: `[n, c]`. What the softmax gate's base row learns from."""
    sequences = [render_chat(backbone.tokenizer, [{"role": "user", "content": prompt}]) for prompt in prompts]
    return torch.cat([pool(gate, h) for h in trunk_outputs(backbone, sequences, trunk_layers, "general prompts")])


def template_lengths(backbone: Backbone) -> tuple[int, int]:
    """How many tokens the chat template puts before and after a user's text."""
    one, other = (
        render_chat(backbone.tokenizer, [{"role": "user", "content": text}]) for text in ("alpha", "beta gamma delta")
    )
    prefix = _common(one, other)
    return prefix, _common(one[prefix:][::-1], other[prefix:][::-1])


def _common(one: list[int], other: list[int]) -> int:
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _content_mask(length: int, prefix: int, suffix: int) -> Tensor:
    positions = torch.arange(length)
    return ((positions >= prefix) & (positions < length - suffix)).float()


def _ridge(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    inputs = torch.cat([x, torch.ones(len(x), 1)], dim=1).double()
    gram = inputs.T @ inputs + 10 * torch.eye(inputs.shape[1], dtype=torch.float64)
    solution = torch.linalg.solve(gram, inputs.T @ y.double()).float()
    return solution[:-1].contiguous(), solution[-1:].contiguous()


def _whitener(covariance: Tensor, ridge: float) -> Tensor:
    """The symmetric inverse square root of the shrunk covariance `[c, c]`, float32."""
    identity = torch.eye(len(covariance), dtype=torch.float64)
    shrunk = (1 - ridge) * covariance + ridge * covariance.diagonal().mean() * identity
    values, vectors = torch.linalg.eigh(shrunk)
    return ((vectors * values.rsqrt()) @ vectors.T).float().contiguous()
