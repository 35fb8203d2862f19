"""Cells on the tiny model: what they hold, and that a killed one goes on to the same numbers."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from adapters.bank import Manifest
from adapters.benchmark import run as run_module
from adapters.benchmark.cells import CellStore
from adapters.benchmark.records import CellResult
from adapters.benchmark.run import run_cell
from adapters.benchmark.seta import SetaLearner, count_blocks, held_parameters, trained_parameters
from adapters.benchmark.tasks import TaskData
from adapters.data import DataError
from adapters.fit import Fitting
from adapters.settings import LearnSettings
from tests.adapters.benchmark.factory import SEQUENCE, make_cell

METHODS = ("seta", "seq-lora", "ewc", "o-lora", "i-lora", "per-task")


@pytest.fixture(scope="module")
def results(tasks: list[TaskData], tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, CellResult]:
    store = CellStore(tmp_path_factory.mktemp("cells"))
    return {spec: run_cell(make_cell(spec, tasks, tiny_model), tasks, tiny_model, store) for spec in METHODS}


def numbers(result: CellResult) -> list[tuple[object, ...]]:
    """What must not depend on when the cell was run."""
    return [(s.tasks, s.accuracy, s.tokens, s.loss, s.trained_parameters, s.blocks, s.routing) for s in result.stages]


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    ("spec", "moment"), [*((spec, "learning") for spec in METHODS), ("seta", "saved"), ("ewc", "saved")]
)
def test_a_killed_cell_loses_one_task_at_most(
    spec: str,
    moment: str,
    results: dict[str, CellResult],
    tasks: list[TaskData],
    tiny_model: Path,
    store: CellStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed in the second task, or when its state was saved but not yet said to be; then run again to the end."""
    cell = make_cell(spec, tasks, tiny_model)
    run_stage, save_progress = run_module.run_stage, CellStore.save_progress
    learned: list[int] = []

    def watched(cell, tasks, learner, index):  # type: ignore[no-untyped-def]
        if moment == "learning" and index == 1 and not learned.count(1):
            learned.append(index)
            raise Killed
        learned.append(index)
        return run_stage(cell, tasks, learner, index)

    def kill_once(self, cell, progress):  # type: ignore[no-untyped-def]
        if moment == "saved" and len(progress.stages) == 2 and learned.count(1) == 1:
            raise Killed
        save_progress(self, cell, progress)

    monkeypatch.setattr(run_module, "run_stage", watched)
    monkeypatch.setattr(CellStore, "save_progress", kill_once)
    with pytest.raises(Killed):
        run_cell(cell, tasks, tiny_model, store)
    assert len(store.progress(cell).stages) == 1 and store.result(cell) is None
    resumed = run_cell(cell, tasks, tiny_model, store)
    assert learned == [0, 1, 1, 2]
    assert numbers(resumed) == numbers(results[spec])
    assert store.result(cell) == resumed


def test_a_task_that_two_processes_learned_is_not_timed(
    tasks: list[TaskData],
    tiny_model: Path,
    results: dict[str, CellResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cell = make_cell("seta", tasks, tiny_model)

    def kill(*_: object) -> float:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Fitting, "run", kill)
        with pytest.raises(Killed):
            SetaLearner(cell, tasks, tiny_model, tmp_path).learn(0)
    learner, whole = SetaLearner(cell, tasks, tiny_model, tmp_path), results["seta"].stages[0]
    fit = learner.learn(0)
    assert not fit.is_timed and whole.seconds is not None
    assert (fit.loss, fit.trained_parameters) == (whole.loss, whole.trained_parameters)
    learner.restore(results["seta"].stages[:1])


@pytest.mark.parametrize("spec", METHODS)
def test_every_task_so_far_is_evaluated_after_each(spec: str, results: dict[str, CellResult]) -> None:
    stages = results[spec].stages
    assert [stage.tasks for stage in stages] == [(name,) for name in SEQUENCE]
    assert [len(stage.accuracy) for stage in stages] == [1, 2, 3]
    for stage in stages:
        assert stage.seconds is not None and stage.seconds > 0 and stage.tokens > 0
        assert stage.peak_bytes > 1 << 20 and stage.trained_parameters > 0


def test_all_methods_see_the_same_tokens(results: dict[str, CellResult]) -> None:
    counts = {tuple(stage.tokens for stage in result.stages) for result in results.values()}
    assert len(counts) == 1


def test_only_seta_routes_and_holds_blocks(results: dict[str, CellResult]) -> None:
    last = results["seta"].stages[-1]
    assert last.routing is not None and last.routing_stripped is not None and last.blocks is not None
    assert [len(row) for row in last.routing.confusion] == [4, 4, 4]
    for row in last.routing.confusion:
        assert sum(row) == pytest.approx(100)
    assert results["seta"].stages[0].routing_stripped is None
    assert all(s.routing is None and s.blocks is None for s in results["seq-lora"].stages)


def test_values_held(results: dict[str, CellResult]) -> None:
    """A rank-8 LoRA: 8 rows of A and 8 columns of B on seven linears in four layers."""
    dims = [(128, 128), (64, 128), (64, 128), (128, 128), (256, 128), (256, 128), (128, 256)]
    lora = 4 * sum(8 * (rows + columns) for rows, columns in dims)
    held = {spec: [stage.held_parameters for stage in result.stages] for spec, result in results.items()}
    assert held["seq-lora"] == [lora] * 3
    assert held["per-task"] == [lora, 2 * lora, 3 * lora]
    seta = results["seta"].stages
    assert held["seta"] == [sum(s.trained_parameters for s in seta[: i + 1]) for i in range(3)]
    assert seta[0].blocks is not None and held["seta"][0] == 2 * seta[0].blocks[0] * 32 * 16


def test_seta_evaluates_every_task_again_after_each(
    tasks: list[TaskData], tiny_model: Path, store: CellStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[int] = []

    def score(self: SetaLearner, index: int) -> float:
        scored.append(index)
        return float(len(scored))

    monkeypatch.setattr(SetaLearner, "_score", score)
    result = run_cell(make_cell("seta", tasks, tiny_model, steps=1), tasks, tiny_model, store)
    assert scored == [0, 1, 0, 2, 0, 1]
    assert [stage.accuracy for stage in result.stages] == [(1.0,), (3.0, 2.0), (5.0, 6.0, 4.0)]


def manifest(*experts: tuple[str, int, tuple[str, ...], int]) -> Manifest:
    """Experts as (object, blocks, tasks, rank); only what is counted."""
    found = [SimpleNamespace(ref=ref, num_blocks=n, tasks=t, rank=r) for ref, n, t, r in experts]
    return cast(Manifest, SimpleNamespace(experts=found, block_size=10))


def test_what_a_task_trained_and_what_is_held() -> None:
    """Task b cuts a's expert in two, shares 3 blocks of it and adds 4 of its own; 2 x rank x 10 values a block."""
    before = manifest(("old", 8, ("a",), 2))
    after = manifest(("cut", 5, ("a",), 2), ("shared", 3, ("a", "b"), 2), ("new", 4, ("b",), 1))
    frozen, elastic = LearnSettings(sharing="frozen"), LearnSettings(sharing="elastic")
    assert trained_parameters(before, after, "b", frozen) == 80
    assert trained_parameters(before, after, "b", elastic) == 80 + 120
    assert trained_parameters(after, after, "b", elastic) == 0
    assert trained_parameters(None, before, "a", frozen) == 320
    assert held_parameters(after) == 200 + 120 + 80
    assert count_blocks(after) == (12, 15)


def test_progress_that_the_bank_contradicts_is_an_error(
    tasks: list[TaskData], tiny_model: Path, store: CellStore, results: dict[str, CellResult]
) -> None:
    cell = make_cell("seta", tasks, tiny_model)
    store.save_progress(cell, run_module.Progress(stages=results["seta"].stages[:2]))
    with pytest.raises(DataError, match="knows 0 tasks, its progress says 2"):
        run_cell(cell, tasks, tiny_model, store)
