"""The training side's own answers, in float32: what the engine is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from adapters.backbone import Backbone
from adapters.bank import Bank
from adapters.data import render_chat
from adapters.evidence import Gate
from adapters.gate import load_gate
from adapters.generate import Generated, generate
from adapters.routed import RoutedModel
from tests.seta_runtime.engine import Answer, Seen


class Reference:
    """Greedy decoding under any generation of a bank; generation None is the base model."""

    def __init__(self, model: Path, bank: Bank, max_tokens: int) -> None:
        self.model_dir, self.bank, self.max_tokens = model, bank, max_tokens
        self.tokenizer = Backbone.load(model, "float32").tokenizer
        self._loaded: dict[int, tuple[RoutedModel, Gate]] = {}

    def tokens(self, text: str) -> list[int]:
        """A user's message as the chat endpoint renders it."""
        return render_chat(self.tokenizer, [{"role": "user", "content": text}])

    def answer(self, prompt: list[int], generation: int | None) -> Generated:
        model, gate = self.load(self.bank.current() if generation is None else generation)
        return generate(model, None if generation is None else gate, prompt, self.max_tokens)

    def decision(self, generated: Generated, generation: int) -> int:
        """The task that the prompt's last token went to, -1 for base."""
        at_end = len(generated.pooled) - len(generated.tokens)
        gate, pooled = self.load(generation)[1], generated.pooled[at_end]
        return int(gate.probabilities(pooled)[:-1].argmax()) if bool(gate.decide(pooled).any()) else -1

    def load(self, generation: int) -> tuple[RoutedModel, Gate]:
        if generation not in self._loaded:
            manifest = self.bank.manifest(generation)
            model = RoutedModel.of(Backbone.load(self.model_dir, "float32"), self.bank, manifest)
            self._loaded[generation] = (model, load_gate(manifest, self.bank.load_gate(manifest)))
        return self._loaded[generation]


@dataclass
class Parity:
    """How far the engine is from the reference over a set of requests; errors are the largest absolute ones."""

    num_requests: int = 0
    num_equal: int = 0
    logprob_error: float = 0.0
    pooled_error: float = 0.0
    probability_error: float = 0.0
    num_pooled: int = 0
    different: list[tuple[list[int], list[int]]] = field(default_factory=list)

    def add(self, answer: Answer, expected: Generated) -> None:
        """Tokens, and the log-probabilities of the first one's likeliest candidates."""
        self.num_requests += 1
        self.num_equal += answer.tokens == expected.tokens
        if answer.tokens != expected.tokens:
            self.different.append((answer.tokens, expected.tokens))
        errors = [abs(found - float(expected.logprobs[0, t])) for t, found in answer.first_logprobs.items()]
        self.logprob_error = max(self.logprob_error, *errors)

    def add_gate(self, seen: Sequence[Seen], expected: Generated, gate: Gate) -> torch.Tensor:
        """Prefix means and probabilities over the prompt. Returns the positions that were compared."""
        prompt_length = len(expected.pooled) - len(expected.tokens) + 1
        positions = torch.cat([part.positions for part in seen])
        pooled = torch.cat([part.pooled for part in seen])[:, : gate.width]
        same = positions < prompt_length
        positions, pooled = positions[same], pooled[same]
        wanted = expected.pooled[positions]
        errors = (pooled - wanted).abs(), (gate.probabilities(pooled) - gate.probabilities(wanted)).abs()
        self.pooled_error = max(self.pooled_error, float(errors[0].max()))
        self.probability_error = max(self.probability_error, float(errors[1].max()))
        self.num_pooled += len(positions)
        return positions

    def check(self) -> None:
        """The bounds that training and serving must keep in float32."""
        print(
            f"{self.num_equal} of {self.num_requests} answers equal; largest differences: first-token log-probability "
            f"{self.logprob_error:.1e}, prefix mean {self.pooled_error:.1e} and gate probability "
            f"{self.probability_error:.1e} over {self.num_pooled} positions"
        )
        assert self.num_equal >= 0.98 * self.num_requests, self
        assert self.logprob_error <= 1e-2, self
        assert self.pooled_error <= 1e-3, self
        assert self.probability_error <= 1e-3, self
