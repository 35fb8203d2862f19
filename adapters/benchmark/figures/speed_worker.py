"""One variant in a process: reads a set-up, then a seed a line on standard input; answers with a step's cost."""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from adapters.anchoring import Anchors
from adapters.asked_process import answer
from adapters.backbone import DTYPES
from adapters.base_model import resolve_model_dir
from adapters.batches import Batches
from adapters.benchmark.lora import LoraModel
from adapters.benchmark.lora_training import train
from adapters.benchmark.memory import peak_bytes, reset_peak
from adapters.benchmark.settings import ALL_LINEARS, LoraSettings, SetaSettings
from adapters.benchmark.tasks import TaskData, read_sequence
from adapters.data import Tokens
from adapters.examples import gate_samples, prepare, render_all
from adapters.fit import Fitting
from adapters.gate import AnalyticGate
from adapters.gate_learning import Fitted
from adapters.learner import open_learner
from adapters.trainer import new_expert, within_budget

NUM_EXAMPLES = 256
Step = Callable[[int], None]
"""One optimiser step on the batch that a seed draws."""


def seta_step(task: TaskData, model_dir: Path, given: SetaSettings) -> tuple[Step, list[Tokens], float]:
    """On as many blocks as a task takes, drawn at random: which ones they are does not change a step's cost."""
    with tempfile.TemporaryDirectory() as folder:
        learner = open_learner(Path(folder) / "bank", str(model_dir), given, given.run)
    model, settings = learner.model, learner.settings
    assert settings.trunk_layers is not None
    start = time.monotonic()
    data = prepare(learner.backbone, task.train, settings.trunk_layers, learner.gate, settings.max_tokens, task.name)[0]
    once_seconds = time.monotonic() - start
    assert isinstance(learner.gate, AnalyticGate), "a gate that learns would be measured with the experts"
    gate = learner.gate.with_task(gate_samples(learner.gate, data))
    data.route(gate)
    size, generator = settings.block_size, torch.Generator().manual_seed(0)
    grids = {site: [d // size for d in routed.base.weight.shape] for site, routed in model.sites.items()}
    scores = {site: torch.rand(*grid, generator=generator) for site, grid in grids.items()}
    model.add("new", new_expert(model, within_budget(scores, [], settings), settings), [0])

    def step(seed: int) -> None:
        seeded = settings.model_copy(update={"seed": seed})
        Fitting(model, ["new"], data, seeded, Anchors({}, 0.0), Fitted(gate)).run()

    return step, data.tokens, once_seconds


def lora_step(task: TaskData, model_dir: Path, settings: LoraSettings) -> tuple[Step, list[Tokens], float]:
    model = LoraModel(model_dir, settings)
    data = model.render(task.train, settings.max_tokens, task.name)

    def step(seed: int) -> None:
        train(model, data, settings.model_copy(update={"seed": seed}), 1)

    return step, data.tokens, 0.0


def peft_step(task: TaskData, model_dir: Path, settings: LoraSettings) -> tuple[Step, list[Tokens], float]:
    """PEFT and transformers as their documentation uses them: a padded batch, `labels` -100 on the prompt, AdamW.

    Attention is the plain one: in bfloat16 on a CPU the default's backward is several times slower.
    """
    from transformers import AutoModelForCausalLM

    plain = LoraModel(model_dir, settings)
    tokens = render_all(plain.backbone, task.train, settings.max_tokens, task.name)[0]
    pad = plain.backbone.tokenizer.pad_token_id or 0
    del plain
    base = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=DTYPES[settings.dtype], attn_implementation="eager", local_files_only=True
    )
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, target_modules=list(ALL_LINEARS), task_type="CAUSAL_LM"
    )
    model = get_peft_model(base, config)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=0.0)

    def step(seed: int) -> None:
        batch = Batches(len(tokens), settings.batch_size, random.Random(seed)).draw()
        model(**padded([tokens[i] for i in batch], pad)).loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad()

    return step, tokens, 0.0


def padded(batch: list[Tokens], pad: int) -> dict[str, torch.Tensor]:
    longest = max(len(t.ids) for t in batch)
    gaps = [longest - len(t.ids) for t in batch]
    return {
        "input_ids": torch.tensor([t.ids + [pad] * gap for t, gap in zip(batch, gaps, strict=True)]),
        "attention_mask": torch.tensor([[1] * len(t.ids) + [0] * gap for t, gap in zip(batch, gaps, strict=True)]),
        "labels": torch.tensor(
            [[-100] * len(t.prompt) + t.answer + [-100] * gap for t, gap in zip(batch, gaps, strict=True)]
        ),
    }


def main() -> None:
    setup: dict[str, Any] = json.loads(sys.stdin.readline())
    (task,) = read_sequence(Path(setup["data"]), (setup["task"],), NUM_EXAMPLES, 1, setup["seed"])
    model_dir, common = resolve_model_dir(setup["model"]), {"batch_size": setup["batch_size"], "steps": 1}
    variant, _, compiled = setup["variant"].partition("-")
    common["compile"] = bool(compiled)
    if variant == "seta":
        step, tokens, once_seconds = seta_step(task, model_dir, SetaSettings(**common))
    elif variant == "lora":
        step, tokens, once_seconds = lora_step(task, model_dir, LoraSettings(**common))
    else:
        step, tokens, once_seconds = peft_step(task, model_dir, LoraSettings(**common))
    answer({"once_seconds": once_seconds, "num_examples": len(tokens)})
    for line in sys.stdin:
        seed = json.loads(line)["seed"]
        reset_peak()
        start = time.monotonic()
        step(seed)
        seconds = time.monotonic() - start
        batch = Batches(len(tokens), setup["batch_size"], random.Random(seed)).draw()
        num_tokens = sum(len(tokens[i].ids) - 1 for i in batch)
        answer({"seconds": seconds, "tokens": num_tokens, "peak_bytes": peak_bytes()})


if __name__ == "__main__":
    main()
