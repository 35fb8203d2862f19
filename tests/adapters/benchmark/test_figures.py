"""The separate figures: their arithmetic by hand, and each once on the tiny model."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from typer.testing import CliRunner, Result

from adapters.base_model import resolve_model_dir
from adapters.benchmark.__main__ import app
from adapters.benchmark.figures import curve
from adapters.benchmark.figures.curve import curve_figure, measure_curve, reached
from adapters.benchmark.figures.general import held_out_prompts
from adapters.benchmark.figures.opened import OpenedBank
from adapters.benchmark.figures.speed import speed_figure
from adapters.benchmark.figures.speed_worker import lora_step, padded, peft_step, seta_step
from adapters.benchmark.figures.starts import columns_of, forced
from adapters.benchmark.figures.unknown import auroc, caught
from adapters.benchmark.settings import LoraSettings, SetaSettings
from adapters.benchmark.tasks import TaskData
from adapters.calibrate import general_prompts
from adapters.data import Tokens
from adapters.learn import learn, open_learner

SETTINGS = SetaSettings(steps=1, batch_size=4, block_size=32, rank=4, trunk_layers=1)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def saved(out: Path, name: str) -> dict[str, object]:
    assert (out / "report.html").is_file()
    return json.loads((out / "figures" / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def bank(tiny_model: Path, tasks: list[TaskData], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks, learned a little."""
    path = tmp_path_factory.mktemp("figures") / "bank"
    learner = open_learner(path, str(tiny_model), SETTINGS)
    for task in tasks[:2]:
        learn(learner, task.name, task.train, task.test)
    return path


def test_auroc_by_hand() -> None:
    assert auroc([3.0, 4.0], [1.0, 2.0]) == 1.0
    assert auroc([1.0, 2.0], [3.0, 4.0]) == 0.0
    assert auroc([2.0, 2.0], [2.0]) == 0.5
    assert auroc([1.0, 3.0], [2.0, 3.0]) == pytest.approx((0 + 0 + 1 + 0.5) / 4)


def test_caught_by_hand() -> None:
    known = [float(n) for n in range(100)]
    assert caught(known, [4.5, 5.0, 2.0, 50.0]) == 0.5, "the threshold is 5.0: five known prompts are below it"
    assert caught([1.0, 2.0], [0.0]) == 1.0


def test_the_fewest_steps_that_reach_the_goal() -> None:
    assert reached([10, 20, 40], [50.0, 70.0, 90.0], 70.0) == 20
    assert reached([10, 20], [50.0, 60.0], 70.0) is None
    figure = curve_figure("a", "b", [10, 20], 70.0, [71.0, 80.0], [60.0, 69.0])
    assert [row[-1] for row in figure.rows] == ["10", "never"]


def test_experts_are_forced_on_from_a_position() -> None:
    """A prompt of 4 and an answer of 2: five states, the last prompt token is the fourth."""
    tokens = [Tokens([0] * 4, [1, 2], "")]
    for start, expected in ((0, [1, 1, 1, 1, 1]), (2, [0, 0, 1, 1, 1]), (9, [0, 0, 0, 1, 1]), (None, [0, 0, 0, 1, 1])):
        (weights,) = forced(tokens, [1], 3, start)
        assert weights[:, 1].tolist() == expected and not weights[:, [0, 2]].any()


@pytest.mark.parametrize(("by_expert", "expected"), [(False, ([1], 2)), (True, ([0, 2], 3))])
def test_a_task_is_its_column_or_its_experts(by_expert: bool, expected: tuple[list[int], int]) -> None:
    manifest = SimpleNamespace(tasks=["a", "b"], experts=["both", "a", "b"], experts_by_task=[[0, 1], [0, 2]])
    opened = SimpleNamespace(manifest=manifest, model=SimpleNamespace(is_routed_by_expert=by_expert))
    assert columns_of(cast(OpenedBank, opened), 1) == expected


def test_ratios_are_of_steps_of_the_same_round() -> None:
    def answers(*seconds: float) -> list[dict[str, float]]:
        return [{"seconds": s, "tokens": 100, "peak_bytes": (i + 1) << 30} for i, s in enumerate(seconds)]

    ready = {name: {"once_seconds": 2.0, "num_examples": 7} for name in ("seta", "lora")}
    figure = speed_figure("t", 16, {"seta": answers(1, 10, 2), "lora": answers(3, 15, 8)}, ready)
    own, lora = (dict(figure.values[name]) for name in ("seta", "lora"))  # type: ignore[call-overload]
    assert own["seta_is_faster_by"] == 1.0 and lora["seta_is_faster_by"] == 3.0
    assert (own["seconds"], own["tokens_per_second"], own["peak_gib"]) == (2, 50, 3.0)


def test_the_general_prompts_are_200_that_nothing_was_fitted_on() -> None:
    prompts = held_out_prompts()
    assert len(set(prompts)) == 200
    assert not set(prompts) & set(general_prompts())


def test_unknown(data_dir: Path, tiny_model: Path, tmp_path: Path) -> None:
    options = ["--set", "block_size=32", "--set", "trunk_layers=1"]
    common = ["--data", data_dir, "--model", tiny_model, "--out", tmp_path]
    result = run("unknown", *common, "--sequence", "colours,sums,names", *options)
    assert result.exit_code == 0, result.output
    values = saved(tmp_path, "unknown-colours-sums-names")["values"]
    assert isinstance(values, dict) and set(values) == {"colours", "sums", "names", "mean"}
    assert all(0 <= number <= 1 for found in values.values() for number in found.values())


def test_general(bank: Path, tiny_model: Path, tmp_path: Path) -> None:
    result = run("general", "--bank", bank, "--model", tiny_model, "--out", tmp_path, "--count", 3, "--max-tokens", 2)
    assert result.exit_code == 0, result.output
    values = saved(tmp_path, "general-bank")["values"]
    assert isinstance(values, dict)
    assert len(values["different"]) <= len(values["routed"]) <= 3


def test_starts(bank: Path, data_dir: Path, tiny_model: Path, tmp_path: Path) -> None:
    result = run("starts", "--bank", bank, "--data", data_dir, "--model", tiny_model, "--out", tmp_path, "--name", "x")
    assert result.exit_code == 0, result.output
    figure = saved(tmp_path, "starts-x")
    assert [row[0] for row in figure["rows"]] == ["colours", "sums"]  # type: ignore[union-attr, index]


def test_a_curve_goes_on_where_it_was(tasks: list[TaskData], tiny_model: Path, tmp_path: Path) -> None:
    first, second = tasks[:2]
    model = str(resolve_model_dir(str(tiny_model)))
    learned: list[str] = []

    def watched(learner, name, *arguments):  # type: ignore[no-untyped-def]
        learned.append(f"{name} after {len(learner.manifest.tasks)}")
        if len(learned) == 3:
            raise KeyboardInterrupt
        learn(learner, name, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curve, "learn", watched)
        with pytest.raises(KeyboardInterrupt):
            measure_curve(first, second, model, [1, 2], SETTINGS, tmp_path)
        figure = measure_curve(first, second, model, [1, 2], SETTINGS, tmp_path)
    one, two = first.name, second.name
    assert learned == [f"{one} after 0", f"{two} after 1", *[f"{two} after 0"] * 2, f"{two} after 1", f"{two} after 0"]
    assert len(figure.values["after"]) == len(figure.values["scratch"]) == 2  # type: ignore[arg-type]
    again = measure_curve(first, second, model, [2], SETTINGS, tmp_path)
    assert again.values["after"] == figure.values["after"][1:]  # type: ignore[index]


@pytest.mark.parametrize("make_step", [seta_step, lora_step, peft_step])
def test_a_measured_step_trains(make_step, tasks: list[TaskData], tiny_model: Path) -> None:  # type: ignore[no-untyped-def]
    """The same seed draws the same batch for every variant; the step moves weights and is not free."""
    settings = SETTINGS if make_step is seta_step else LoraSettings(batch_size=4, steps=1)
    step, tokens, once_seconds = make_step(tasks[0], tiny_model, settings)
    assert len(tokens) == 8 and (once_seconds > 0) == (make_step is seta_step)
    moved: list[float] = []
    optimise = torch.optim.AdamW.step

    def watched(self, *arguments):  # type: ignore[no-untyped-def]
        parameters = self.param_groups[0]["params"]
        before = [p.detach().clone() for p in parameters]
        optimise(self, *arguments)
        moved.append(sum(float((p - q).abs().sum()) for p, q in zip(parameters, before, strict=True)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", watched)
        step(0)
    assert len(moved) == 1 and moved[0] > 0


def test_a_padded_batch_by_hand() -> None:
    batch = padded([Tokens([5, 6], [7], ""), Tokens([5], [8, 9, 4], "")], pad=1)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 1], [5, 8, 9, 4]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[-100, -100, 7, -100], [-100, 8, 9, 4]]


@pytest.mark.parametrize("points", ["", "10,x", "0,10"])
def test_points_are_numbers_of_steps(points: str, data_dir: Path, tmp_path: Path) -> None:
    options = ["--first", "colours", "--second", "sums", "--points", points, "--out", tmp_path / "out"]
    result = run("curve", "--data", data_dir, *options)
    assert result.exit_code == 1 and "expected numbers of steps" in result.stderr
