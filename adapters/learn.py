"""Learn tasks in order, publish one generation per task: the top of the training side, read from `learn_tasks` down."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

from adapters.bank import Manifest
from adapters.checkpoint import remove_checkpoint
from adapters.composition import anchor, compose
from adapters.data import DataError, Example
from adapters.evaluate import score_task
from adapters.examples import Prepared, places, prepare
from adapters.fit import Fitting
from adapters.gate_learning import expand_gate
from adapters.gradient_init import start_along
from adapters.learner import Learner, open_learner
from adapters.learning_log import LearningLog, drop_if_published, latest_of_call
from adapters.parallel import ALONE, Processes
from adapters.progress import console
from adapters.publish import Learned, changed_unmeasured, publish
from adapters.recipe import recipe_sha256
from adapters.settings import DEFAULT_RUN, LearnSettings, RunSettings
from adapters.task_data import TaskData, Tasks, check_all
from adapters.trainer import Scored, choose_blocks, new_expert, score_blocks


def learn_tasks(
    bank_dir: Path,
    model: str,
    tasks: Tasks,
    tests: Tasks,
    settings: LearnSettings,
    run: RunSettings = DEFAULT_RUN,
    processes: Processes = ALONE,
) -> Manifest:
    """Learn every task of `tasks` in order; returns the last published manifest.

    `tests`: held-out examples by task; a task without any keeps a share of its own back. A call that was interrupted is
    gone on with by the same call: tasks that it published are recognised, the one it was at goes on where it was.
    Raises DataError, BankError, CheckpointError; a task that fails leaves the generations before it in place.
    """
    learner = open_learner(bank_dir, model, settings, run, processes)
    with _only_learner(learner):
        data = {name: TaskData.split(examples, tests.get(name), learner.settings) for name, examples in tasks.items()}
        check_all(learner.backbone, data, learner.settings.max_tokens)
        recipes = {name: recipe_sha256(task.train, learner.settings) for name, task in data.items()}
        learner = _where_it_was_left(learner, recipes)
        known = _known(learner.manifest, recipes)
        if processes.is_main:
            _drop_checkpoint(learner, {recipes[name] for name in known})
        processes.wait()
        held_out = {name: task.test for name, task in data.items()} | dict(tests)
        for name in (task.name for task in learner.manifest.tasks if task.name in held_out):
            learner.held_out[name] = _prepare(learner, held_out[name], f"{name} (held out)")
        for name in (n for n in data if n not in known):
            learn(learner, name, data[name].train, data[name].test)
    return learner.manifest


@contextmanager
def _only_learner(learner: Learner) -> Iterator[None]:
    """The first process holds the bank's learner lock; the others go on once it has it. Raises BankConflict."""
    with learner.bank.learning() if learner.processes.is_main else nullcontext():
        if learner.processes.is_main:
            learner.bank.tidy()
        learner.processes.wait()
        yield


def _where_it_was_left(learner: Learner, recipes: Mapping[str, str]) -> Learner:
    """At the last generation that calls with these recipes published: the learner, or one opened there."""
    bank, run, processes = learner.bank, learner.run, learner.processes
    latest = latest_of_call(bank, bank.manifest(), recipes)
    processes.wait()  # all have read CURRENT before the first one moves it
    if processes.is_main and run.make_current and latest.generation != bank.current():
        bank.set_current(latest.generation)
    if latest == learner.manifest:
        return learner
    return open_learner(bank.root, learner.model_name, learner.settings, run, processes, latest)


def _drop_checkpoint(learner: Learner, published: Collection[str]) -> None:
    """If it is not wanted, or its task is published: then its call was killed in between."""
    if learner.run.fresh:
        remove_checkpoint(learner.bank)
    else:
        drop_if_published(learner.bank, published)


def _known(manifest: Manifest, recipes: Mapping[str, str]) -> set[str]:
    """The tasks that this very call learned before it was interrupted, or repeated. Raises DataError for others."""
    known = {task.name: task for task in manifest.tasks if task.name in recipes}
    for name, task in known.items():
        if task.recipe_sha256 != recipes[name]:
            raise DataError(
                f"task {name!r} is already in generation {manifest.generation}, learned from other examples or with "
                "other settings; give the new task another name"
            )
        console.print(f"task {name!r} is learned already, in generation {task.generation}", highlight=False)
    return set(known)


def learn(learner: Learner, name: str, examples: list[Example], test: list[Example] | None) -> None:
    """Learn one task: score blocks → share or split → expand the gate → fit → evaluate → publish."""
    settings, model, index = learner.settings, learner.model, len(learner.manifest.tasks)
    names = [*(task.name for task in learner.manifest.tasks), name]
    task = TaskData.split(examples, test, settings)
    console.rule(f"task {name!r}: {len(task.train)} examples, {len(task.test)} held out")
    log = _log(learner, name, recipe_sha256(task.train, settings))
    data = _prepare(learner, task.train, name)
    learner.held_out[name] = _prepare(learner, task.test, f"{name} (held out)")

    scored = log.scores() or log.keep_scores(_score_blocks(learner, data))
    choice = choose_blocks(model, scored, settings, learner.history)
    known = list(model.experts)
    composition = compose(model, data, choice.blocks, names, settings)
    unique_id, shared = f"{name}.unique", list(composition.parent_of)
    if composition.own:
        expert = new_expert(model, composition.own, settings)
        start_along(expert, scored.gradients, learner.processes)
        model.add(unique_id, expert, [index])
    learning = shared if settings.sharing == "elastic" else []
    for expert_id in learning:
        model.thaw(expert_id)
    anchors = anchor(model, learning, settings)
    decisions = expand_gate(learner.gate, model, data, composition, known, learner.general_features(), settings)
    plastic = [*learning, *([unique_id] if composition.own else [])]
    fitting = Fitting(model, plastic, data, settings, anchors, decisions, learner.run.accumulate, learner.processes)
    log.restore(fitting)
    loss = fitting.run(log.keep)
    gate = decisions.gate()
    for expert_id in plastic:
        model.round_as_stored(expert_id)
        model.freeze(expert_id)
    learner.gate, learner.history = gate, learner.history.with_task(choice.scores)

    scores = {task: score_task(model, gate, held, names.index(task), task) for task, held in learner.held_out.items()}
    numbers = {"final_loss": round(loss, 4), "warm_up_steps": choice.warm_up_steps}
    changed = {*plastic, *shared, *composition.parent_of.values()}
    learned = Learned(name, len(data), changed, scores, numbers, recipe_sha256=log.recipe, created=log.started)
    learner.manifest = _publish(learner, learned, log)
    console.print(
        f"generation {learner.manifest.generation}: {name} {scores[name].accuracy:.1f} % right, "
        f"{scores[name].routing:.1f} % routed to it",
        highlight=False,
    )
    unmeasured = changed_unmeasured(model, learned, names) if learning else []
    if unmeasured:
        console.print(
            f"{', '.join(unmeasured)}: share sub-blocks with {name} that learned on, and were not measured; "
            "give their held-out examples (--test)",
            highlight=False,
        )


def _log(learner: Learner, name: str, recipe: str) -> LearningLog:
    log = LearningLog.start(
        learner.bank,
        learner.manifest,
        name,
        recipe,
        learner.settings,
        learner.run.checkpoint_seconds,
        learner.processes.is_main,
    )
    learner.processes.wait()  # all have read it before the first one writes
    log.begin()
    return log


def _score_blocks(learner: Learner, data: Prepared) -> Scored:
    return score_blocks(learner.model, data, learner.settings, learner.run.accumulate, learner.processes)


def _publish(learner: Learner, learned: Learned, log: LearningLog) -> Manifest:
    """By the first process; the others read what it wrote, once its checkpoint is gone too."""
    bank, old, run = learner.bank, learner.manifest, learner.run
    stored_settings = {**learner.settings.model_dump(mode="json"), "model": learner.model_name}
    if learner.processes.is_main:
        state = (learner.model, learner.gate, learner.history)
        published = publish(bank, old, *state, learned, stored_settings, make_current=run.make_current)
        log.close()
    learner.processes.wait()
    return published if learner.processes.is_main else latest_of_call(bank, old, {learned.name: log.recipe})


def _prepare(learner: Learner, examples: list[Example], what: str) -> Prepared:
    settings = learner.settings
    assert settings.trunk_layers is not None
    data, num_long = prepare(
        learner.backbone, examples, settings.trunk_layers, learner.gate, settings.max_tokens, what, learner.memory
    )
    if num_long:
        limit = min(settings.max_tokens, learner.backbone.context_tokens)
        console.print(
            f"{what}: {num_long} of {len(examples)} examples are longer than {limit} tokens "
            f"and were left out: {places(data.too_long)}",
            highlight=False,
        )
    return data
