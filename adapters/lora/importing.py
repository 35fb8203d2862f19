"""A PEFT LoRA becomes one more task of a bank: `import_lora`, read from there down.

The expert is the adapter's ΔW, exactly. What differs from the adapter alone is when it acts: the adapter always, the
expert from the token on at which the gate knows the task. How much that changes is measured on examples held back, and
a short training on the adapter's own predictions makes up for a part of it, where that measures better.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from adapters.bank import Bank, BankConflict, BankNotFound, BaseModelInfo, Manifest
from adapters.bank.info import MAX_OBJECT_BYTES
from adapters.base_model import fingerprint, resolve_model_dir
from adapters.data import DataError, TaskPrompt, Tokens, read_task_prompts, render_prompt
from adapters.evaluate import TaskScore, score_task
from adapters.examples import Prepared, gate_samples, places, prepare_tokens
from adapters.gate import AnalyticGate
from adapters.generate import Always, generate
from adapters.learner import Learner, open_learner
from adapters.lora.adapting import adapt, adapter_outputs
from adapters.lora.config import LoraError
from adapters.lora.convert import block_values, to_expert
from adapters.lora.files import Adapter, read_adapter
from adapters.progress import console, track
from adapters.publish import Learned, publish
from adapters.routed import STORED_DTYPE, Expert
from adapters.settings import LearnSettings

MIN_EXAMPLES = 4


@dataclass(frozen=True)
class ImportSettings:
    """`held_out`: share of the examples that the import is measured on. `answer_tokens`: how long an answer may get
    that the adapter gives. `adapt_steps`: 0 leaves the expert exactly what the adapter is. The last two are for a new
    bank only.
    """

    held_out: float = 0.2
    answer_tokens: int = 64
    max_tokens: int = 1024
    adapt_steps: int = 60
    seed: int = 0
    dtype: str = "bfloat16"
    trunk_layers: int | None = None
    block_size: int | None = None


@dataclass(frozen=True)
class Imported:
    """`score.accuracy`: % of the held-out prompts with the adapter's own greedy answer; `score.routing`: % routed to
    the task at the prompt's end. `exact`: the same for the adapter's ΔW as it is; `score` is the better one."""

    manifest: Manifest
    score: TaskScore
    exact: TaskScore


def import_lora(
    bank_dir: Path, model: str, adapter_dir: Path, task: str, examples: Path, settings: ImportSettings
) -> Imported:
    """Read and check the adapter → cut it into sub-blocks → fit the gate on the examples → measure → publish.

    Raises LoraError, DataError, BankError; the bank is as it was then.
    """
    prompts = read_task_prompts(examples, task)
    if len(prompts) < MIN_EXAMPLES:
        raise DataError(f"{examples}: {len(prompts)} prompts found, at least {MIN_EXAMPLES} expected; give a few dozen")
    base = fingerprint(resolve_model_dir(model))
    adapter = read_adapter(adapter_dir, base)
    layout = layout_for(bank_dir, base, adapter, task, settings)

    learner = open_learner(bank_dir, model, layout)
    with learner.bank.learning():
        if learner.bank.manifest() != learner.manifest:
            raise BankConflict("the bank has another generation since the import began; run it again")
        return _import(learner, adapter, task, prompts, settings)


def _import(
    learner: Learner, adapter: Adapter, task: str, prompts: Sequence[TaskPrompt], settings: ImportSettings
) -> Imported:
    expert = to_expert(adapter.deltas, learner.manifest.block_size)
    expert_id, index = f"{task}.unique", len(learner.manifest.tasks)
    learner.model.add(expert_id, expert, [index], dtype_of(expert))
    learner.model.freeze(expert_id)
    fitted, held = _rendered(learner, prompts, settings)
    data, check = _prepare(learner, fitted, task), _prepare(learner, held, f"{task} (held out)")
    assert isinstance(learner.gate, AnalyticGate), "layout_for refuses others"
    learner.gate = learner.gate.with_task(gate_samples(learner.gate, data))
    exact = score_task(learner.model, learner.gate, check, index, task)
    score = _adapted(learner, expert_id, data, check, exact, settings)
    numbers = {"same_answers_as_lora": round(score.accuracy, 2), "routing": round(score.routing, 2)}
    learned = Learned(task, len(data), {expert_id}, {}, numbers, score.num_test)
    return Imported(_publish(learner, learned), score, exact)


def _prepare(learner: Learner, tokens: list[Tokens], what: str) -> Prepared:
    trunk_layers = learner.manifest.trunk_layers
    return prepare_tokens(learner.backbone, tokens, trunk_layers, learner.gate, what, learner.memory)


def _adapted(
    learner: Learner, expert_id: str, data: Prepared, check: Prepared, exact: TaskScore, settings: ImportSettings
) -> TaskScore:
    """Train the expert on the adapter's predictions; what it was comes back unless that measures better."""
    if not settings.adapt_steps or exact.accuracy == 100:
        return exact
    model, index = learner.model, len(learner.manifest.tasks)
    before, dtype = copy.deepcopy(model.experts[expert_id]), model.dtypes[expert_id]
    wanted = adapter_outputs(model, data, index, learner.memory)
    data.route(learner.gate)
    model.dtypes[expert_id] = STORED_DTYPE
    adapt(model, expert_id, data, wanted, settings.adapt_steps, settings.seed)
    score = score_task(model, learner.gate, check, index, expert_id)
    if score.accuracy > exact.accuracy:
        return score
    model.add(expert_id, before, [index], dtype)
    model.freeze(expert_id)
    return exact


def dtype_of(expert: Expert) -> torch.dtype:
    """What holds every value of the expert as it is: bfloat16 if that does, else float32."""
    values = [parameter for delta in expert.values() for parameter in delta.parameters()]
    is_enough = all(torch.equal(v, v.to(STORED_DTYPE).to(v.dtype)) for v in values)
    return STORED_DTYPE if is_enough else torch.float32


def layout_for(bank_dir: Path, base: BaseModelInfo, adapter: Adapter, task: str, new: ImportSettings) -> LearnSettings:
    """The bank's layout, or for a new bank one that the adapter fits. Raises LoraError if it does not fit."""
    try:
        bank = Bank.open(bank_dir)
        manifest = bank.manifest() if bank.generations() else None
    except BankNotFound:
        manifest = None
    settings = LearnSettings(seed=new.seed, dtype=new.dtype, max_tokens=new.max_tokens)  # type: ignore[arg-type]
    if manifest is None:
        trunk_layers = new.trunk_layers or min(settings.trunk_of(base.num_layers), max(1, adapter.layers[0]))
        block_size = new.block_size or settings.block_size
        changes = {"trunk_layers": trunk_layers, "block_size": block_size, "targets": adapter.targets}
        layout = LearnSettings.model_validate(settings.model_dump() | changes)
    else:
        if any(known.name == task for known in manifest.tasks):
            raise DataError(f"task {task!r} is already in generation {manifest.generation}; choose another --task")
        if manifest.gate.kind != "analytic":
            raise LoraError(
                f"this bank's gate is {manifest.gate.kind}, which learns with its experts; an adapter can be imported "
                "where the gate is analytic: give another bank"
            )
        names = ("trunk_layers", "block_size")
        asked = {name: getattr(new, name) for name in names if getattr(new, name) is not None}
        layout = settings.model_copy(update={name: getattr(manifest, name) for name in (*names, "targets")} | asked)
    _check_fits(adapter, layout, base, is_new=manifest is None)
    return layout


def _check_fits(adapter: Adapter, layout: LearnSettings, base: BaseModelInfo, is_new: bool) -> None:
    trunk = layout.trunk_layers
    assert trunk is not None
    below = [layer for layer in adapter.layers if layer < trunk]
    strangers = [target for target in adapter.targets if target not in layout.targets]
    if below or strangers:
        lost = ([f"layers {_span(below)}"] if below else []) + strangers
        raise LoraError(
            f"the adapter changes {', '.join(adapter.targets)} of layers {_span(adapter.layers)}; "
            f"{'the new' if is_new else 'this'} bank's experts are on {', '.join(layout.targets)} of layers {trunk} to "
            f"{base.num_layers - 1}, so {' and '.join(lost)} would be lost; {_way_out(adapter, layout, base)}"
        )
    size = layout.block_size
    for target in adapter.targets:
        if any(dim % size for dim in base.target_dims(target)):
            raise LoraError(f"block_size {size} does not divide {target}'s {base.target_dims(target)}; give another")
    num_bytes = 4 * block_values(adapter.deltas, size)
    if num_bytes > MAX_OBJECT_BYTES:
        raise LoraError(
            f"cut into blocks of {size} the adapter may take {num_bytes / 2**30:.1f} GiB, an expert at most "
            f"{MAX_OBJECT_BYTES >> 30}; import it into a new bank with a larger --block-size"
        )


def _way_out(adapter: Adapter, layout: LearnSettings, base: BaseModelInfo) -> str:
    if adapter.layers[0] > 0:
        return f"import it into a new bank with --trunk-layers {adapter.layers[0]} or less"
    return (
        "layer 0 belongs to the trunk of every bank, which the gate reads: train the adapter without the trunk "
        f"(layers_to_transform={layout.trunk_layers}..{base.num_layers - 1}, target_modules={list(layout.targets)}), "
        "or learn the task itself with seta learn"
    )


def _rendered(
    learner: Learner, prompts: Sequence[TaskPrompt], settings: ImportSettings
) -> tuple[list[Tokens], list[Tokens]]:
    """The examples to fit the gate on and those held back.

    The adapter itself answers the ones held back, and those without an answer.
    """
    tokenizer, limit = learner.backbone.tokenizer, min(settings.max_tokens, learner.backbone.context_tokens)
    limit -= settings.answer_tokens
    rendered = [(prompt, render_prompt(tokenizer, prompt)) for prompt in prompts]
    fitting = [(prompt, ids) for prompt, ids in rendered if len(ids) <= limit]
    too_long = [prompt.where for prompt, ids in rendered if len(ids) > limit]
    if too_long:
        console.print(f"{len(too_long)} prompts are longer than {limit} tokens and were left out: {places(too_long)}")
    if len(fitting) < MIN_EXAMPLES:
        raise DataError(f"{len(fitting)} prompts of at most {limit} tokens found, at least {MIN_EXAMPLES} expected")
    random.Random(settings.seed).shuffle(fitting)
    count = max(1, round(settings.held_out * len(fitting)))
    always = Always(len(learner.manifest.tasks), len(learner.manifest.tasks) + 1)
    tokens: list[Tokens] = []
    for place, (prompt, ids) in enumerate(track(fitting, "the adapter answers", unit="prompts")):
        if place < count or prompt.answer is None:
            answer = generate(learner.model, always, ids, settings.answer_tokens).tokens
        else:
            answer = tokenizer(prompt.answer, add_special_tokens=False).input_ids[: settings.answer_tokens]
        tokens.append(Tokens(ids, answer, tokenizer.decode(answer, skip_special_tokens=True)))
    return tokens[count:], tokens[:count]


def _publish(learner: Learner, learned: Learned) -> Manifest:
    """An adapter's accuracy is not measured here, so the new generation has no accuracy matrix."""
    old = learner.manifest
    settings = {"max_tokens": learner.settings.max_tokens, **old.settings, "model": learner.model_name}
    return publish(learner.bank, old, learner.model, learner.gate, learner.history, learned, settings)


def _span(layers: Sequence[int]) -> str:
    """`6 to 29`, `3`, or a list where some are missing in between."""
    if list(layers) == list(range(layers[0], layers[-1] + 1)):
        return str(layers[0]) if len(layers) == 1 else f"{layers[0]} to {layers[-1]}"
    return ", ".join(map(str, layers))
