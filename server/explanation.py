"""What is told of the gate's decisions on one request.

Every token of an answer is taken from the model's output at the token before it, where the gate decided which experts
shape that output. An answer's weights are the means of these decisions over its tokens: the engine always computes
them, whatever the prefix cache had of the prompt. In a list of tokens, a prompt token stands with the decision at that
token, a token of the answer with the decision it came from.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Protocol

from adapters.bank import Manifest

from .watching import Decision, Watched

MAX_LISTED_TOKENS = 16_384
_LONGEST_CHARACTER = 4
"""Bytes of UTF-8, and so tokens, that one character may be spread over."""
_DIGITS = 6


class Tokenizer(Protocol):
    """What is needed of a tokenizer to show its tokens."""

    def decode(self, ids: list[int], *, skip_special_tokens: bool = False) -> str: ...


def summarize(manifest: Manifest | None, decisions: Sequence[Decision | None]) -> dict[str, Any]:
    """Generation, and the mean weights of base, tasks and experts; those with a weight above zero, the heaviest first.

    manifest None: the base model. Positions that were not decided on do not count.
    """
    weights = _mean([decision for decision in decisions if decision is not None])
    base_weight = _rounded(1 - sum(weights.values()))
    if manifest is None:
        return {"generation": None, "base_weight": base_weight, "tasks": [], "experts": []}
    tasks, experts = _shares(manifest, weights)
    named = [{"name": manifest.tasks[task].name, "weight": _rounded(weight)} for task, weight in tasks.items()]
    return {
        "generation": manifest.generation,
        "base_weight": base_weight,
        "tasks": _heaviest_first(named),
        "experts": _heaviest_first(_described(manifest, experts)),
    }


def list_tokens(manifest: Manifest | None, watched: Watched, tokenizer: Tokenizer) -> dict[str, Any]:
    """`tokens`: prompt and answer, at most the last `MAX_LISTED_TOKENS`; `tokens_left_off`: how many came before.

    The request must have been watched with its prompt.
    """
    prompt = list(zip(watched.prompt, watched.decisions, strict=False))
    answer = list(zip(watched.answer, watched.of_answer, strict=True))
    parts = ["prompt"] * len(prompt) + ["answer"] * len(answer)
    rows = list(zip(parts, prompt + answer, strict=True))
    left_off = max(0, len(rows) - MAX_LISTED_TOKENS)
    kept = rows[left_off:]
    texts = texts_of(tokenizer, [token for _, (token, _) in kept])
    tokens = [
        {"id": token, "text": text, "part": part} | _one(manifest, decision)
        for text, (part, (token, decision)) in zip(texts, kept, strict=True)
    ]
    return {"tokens": tokens, "tokens_left_off": left_off}


def texts_of(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text; a character that several tokens spell stands at the last of them."""
    texts: list[str] = []
    shown: list[int] = []
    pending: list[int] = []
    for index, token in enumerate(ids):
        pending.append(token)
        before = tokenizer.decode(shown, skip_special_tokens=False)
        text = tokenizer.decode(shown + pending, skip_special_tokens=False)[len(before) :]
        is_part = text.endswith("\N{REPLACEMENT CHARACTER}") and len(pending) < _LONGEST_CHARACTER
        if is_part and index + 1 < len(ids):
            texts.append("")
            continue
        texts.append(text)
        shown, pending = pending, []
    return texts


def _one(manifest: Manifest | None, decision: Decision | None) -> dict[str, Any]:
    if decision is None:
        return {"base_weight": None, "tasks": None, "experts": None}
    told = summarize(manifest, [decision])
    experts = [{"id": expert["id"], "weight": expert["weight"]} for expert in told["experts"]]
    return {"base_weight": told["base_weight"], "tasks": told["tasks"], "experts": experts}


def _mean(decisions: Sequence[Decision]) -> dict[int, float]:
    """Mean weight by the gate's column."""
    sums: dict[int, float] = defaultdict(float)
    for decision in decisions:
        for column, weight in decision:
            sums[column] += weight
    return {column: total / len(decisions) for column, total in sums.items()}


def _shares(manifest: Manifest, weights: dict[int, float]) -> tuple[dict[int, float], dict[int, float]]:
    """Weights by task and by expert, from those of the gate's columns.

    Where the gate decides on tasks, an expert gets the sum of its tasks' weights, as in the layer: g = p M. Where it
    decides on experts, an expert's weight goes in equal parts to its tasks.
    """
    tasks: dict[int, float] = defaultdict(float)
    experts: dict[int, float] = defaultdict(float)
    is_over_experts = manifest.gate.kind == "softmax"
    experts_by_task, tasks_by_expert = manifest.experts_by_task, manifest.tasks_by_expert
    for column, weight in weights.items():
        if not is_over_experts:
            tasks[column] += weight
            for expert in experts_by_task[column]:
                experts[expert] += weight
            continue
        experts[column] += weight
        users = tasks_by_expert[column]
        for task in users:
            tasks[task] += weight / len(users)
    return tasks, experts


def _described(manifest: Manifest, weights: dict[int, float]) -> list[dict[str, Any]]:
    found = ((manifest.experts[index], weight) for index, weight in weights.items())
    return [{"id": e.id, "kind": e.kind, "tasks": list(e.tasks), "weight": _rounded(weight)} for e, weight in found]


def _heaviest_first(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(entries, key=lambda entry: -entry["weight"])


def _rounded(weight: float) -> float:
    return min(1.0, max(0.0, round(weight, _DIGITS)))
