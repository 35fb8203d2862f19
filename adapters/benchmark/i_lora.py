"""`i-lora`: a fast LoRA that learns and replays, and a slow one that follows it and answers.

    θ_slow ← d θ_slow + (1 - d) θ_fast   after step s of the whole sequence, d = min(1 - 1/(s+1), decay)
    loss = (NLL_fast(new) + NLL_fast(memory)) / 2 + consistency · mean (h_fast(memory) - h_slow(memory))²

Ren et al. 2024, "Analyzing and Reducing Catastrophic Forgetting in Parameter Efficient Tuning", arXiv 2402.18865. The
memory is a reservoir over the training examples of all tasks so far; h: final hidden states of all its tokens, after
the last norm. The first task has no memory yet: NLL alone.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn

from adapters.benchmark.lora import LoraModel, pieces
from adapters.benchmark.lora_methods import SequentialLora
from adapters.benchmark.settings import ILoraSettings
from adapters.data import Tokens
from adapters.examples import Prepared


def reservoir(memory: list[Tokens], seen: int, new: list[Tokens], capacity: int, rng: random.Random) -> int:
    """Reservoir sampling, in place: every example seen so far is kept with the same probability. Returns `seen`."""
    for tokens in new:
        seen += 1
        if len(memory) < capacity:
            memory.append(tokens)
        elif (place := rng.randrange(seen)) < capacity:
            memory[place] = tokens
    return seen


def slow_decay(step: int, decay: float) -> float:
    """Of the step that counts from 1 over the whole sequence: the slow weights start as a plain average."""
    return min(1 - 1 / (step + 1), decay)


def replay(model: LoraModel, slow: dict[str, Tensor], data: Prepared, batch: list[int], consistency: float) -> None:
    """Add the gradient of `NLL / 2 + consistency · mean (h_fast - h_slow)²` on memory examples; fast weights serve."""
    parts = pieces(data.tokens, batch)
    model.use(slow)
    with torch.no_grad():
        wanted = [model.normed_output(data, part) for part in parts]
    model.use(model.weights)
    num_answer = sum(len(data.tokens[i].answer) for i in batch)
    num_tokens = sum(len(data.tokens[i].ids) - 1 for i in batch)
    for part, target in zip(parts, wanted, strict=True):
        hidden = model.normed_output(data, part)
        rows, positions, labels = data.targets(part)
        logits = model.backbone.model.lm_head(hidden[rows, positions]).float()
        nll = nn.functional.cross_entropy(logits, labels, reduction="sum") / num_answer
        is_token = torch.arange(hidden.shape[1])[None] < torch.tensor([[len(data.tokens[i].ids) - 1] for i in part])
        squares = (hidden.float() - target.float())[is_token].pow(2).sum() / (num_tokens * hidden.shape[-1])
        (nll / 2 + consistency * squares).backward()
        model.collect_gradients()


class ILora(SequentialLora):
    settings: ILoraSettings
    slow: dict[str, Tensor]
    memory: list[Tokens]

    def start(self) -> None:
        self.slow = {name: weight.detach().clone() for name, weight in self.model.weights.items()}
        self.memory, self.seen, self.step = [], 0, 0

    def before_task(self, group: int) -> None:
        self.model.use(self.model.weights)

    def batch_gradients(self, data: Prepared, batch: list[int], rng: random.Random) -> float:
        if not self.memory:
            return self.model.add_gradients(data, batch)
        loss = self.model.add_gradients(data, batch, 0.5)
        old = Prepared(self.memory, [], [], [])
        replayed = rng.sample(range(len(old)), min(self.settings.replay_batch, len(old)))
        replay(self.model, self.slow, old, replayed, self.settings.consistency)
        return loss

    def after_step(self) -> None:
        self.step += 1
        decay = slow_decay(self.step, self.settings.decay)
        with torch.no_grad():
            for name, weight in self.model.weights.items():
                self.slow[name].mul_(decay).add_(weight, alpha=1 - decay)

    def after_task(self, group: int, data: Prepared) -> None:
        rng = random.Random(self.settings.seed + group)
        self.seen = reservoir(self.memory, self.seen, data.tokens, self.settings.memory, rng)
        self.model.use(self.slow)

    def num_held(self, group: int) -> int:
        return 2 * self.model.num_parameters

    def state(self) -> dict[str, Tensor]:
        tensors = super().state() | {f"slow.{name}": weight for name, weight in self.slow.items()}
        for part in ("prompt", "answer"):
            lists = [getattr(tokens, part) for tokens in self.memory]
            tensors[f"memory.{part}.ids"] = torch.tensor([i for ids in lists for i in ids])
            tensors[f"memory.{part}.lengths"] = torch.tensor([len(ids) for ids in lists])
        return tensors | {"counters": torch.tensor([self.seen, self.step])}

    def load_state(self, tensors: dict[str, Tensor], num_groups: int) -> None:
        super().load_state(tensors, num_groups)
        self.slow = {name: tensors[f"slow.{name}"].clone() for name in self.slow}
        prompts, answers = (
            tensors[f"memory.{part}.ids"].split(tensors[f"memory.{part}.lengths"].tolist())
            for part in ("prompt", "answer")
        )
        self.memory = [Tokens(p.tolist(), a.tolist(), "") for p, a in zip(prompts, answers, strict=True)]
        self.seen, self.step = tensors["counters"].tolist()
