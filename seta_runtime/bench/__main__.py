"""The benchmark's command line and its loop: groups of engines outside, points inside, turns innermost."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, TextIO

import typer

from adapters.bank import Bank
from adapters.progress import Steps, console
from seta_runtime.bench.engines import Running, variants
from seta_runtime.bench.groups import Group, groups
from seta_runtime.bench.report import Measured, summarise, write_report
from seta_runtime.bench.start_up import server_seconds
from seta_runtime.bench.turns import Engine, Pass, Turns, passes


def chosen(
    all_groups: Sequence[Group], engines: Sequence[str] | None, points: Sequence[str] | None = None
) -> list[Group]:
    """The groups limited to the engines and points that are named; "plain" and "routed", which the others are measured
    against, always are. Without names all of them. Raises typer.BadParameter for a name that there is not."""
    known = list(dict.fromkeys(name for group in all_groups for name in group.engines))
    _check("engine", engines, known)
    known_points = list(dict.fromkeys(point.name for group in all_groups for point in group.points))
    _check("point", points, known_points)
    wanted = known if not engines else ["plain", "routed", *engines]
    limited = [group.limited_to(wanted).at(points or known_points) for group in all_groups]
    return [group for group in limited if group.ratios and group.points]


def _check(what: str, names: Sequence[str] | None, known: Sequence[str]) -> None:
    unknown = sorted(set(names or ()) - set(known))
    if unknown:
        raise typer.BadParameter(f"there is no {what} {unknown[0]!r}; choose of {', '.join(known)}")


def measure(running: Running, chosen_groups: Sequence[Group], seconds: float, log: TextIO) -> Measured:
    """Passes of every group and point; each engine at each point gets an equal share of the time.

    Every slice goes to `log`, one JSON object a line.
    """
    share = seconds / sum(len(group.engines) * len(group.points) for group in chosen_groups)
    found: Measured = {}
    with Steps("benchmark", sum(len(group.points) for group in chosen_groups), "points") as steps:
        for number, group in enumerate(chosen_groups):
            engines: list[Engine] = list(running.start(group))
            for point in group.points:
                found[group.name, point.name] = []
                for one in passes(Turns(engines, point), share * len(engines)):
                    _log(log, group.name, point.name, len(found[group.name, point.name]), one)
                    found[group.name, point.name].append(one)
                steps.advance(f"{group.name} {point.name} {len(found[group.name, point.name])} passes")
            running.note(group)
            running.keep(chosen_groups[number + 1 :])
    return found


def _log(log: TextIO, group: str, point: str, number: int, measured: Pass) -> None:
    where = {"group": group, "point": point, "pass": number}
    for engine, slices in measured.items():
        for one in slices:
            log.write(json.dumps(where | {"engine": engine} | asdict(one)) + "\n")


def render(model: str, tests: list[Path], count: int) -> list[list[int]]:
    from transformers import AutoTokenizer

    from adapters.data import read_examples, render_chat

    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    examples = [read_examples(path)[:count] for path in tests]
    return [render_chat(tokenizer, example.chat()) for group in zip(*examples, strict=False) for example in group]


def main(
    model: Annotated[
        str, typer.Option(help="Local directory of the base model.")
    ] = "build/models/SmolLM2-135M-Instruct",
    bank: Annotated[Path, typer.Option(help="The bank to serve.")] = Path("demo/bank"),
    tasks: Annotated[Path, typer.Option(help="Folder with <task>/test.jsonl.")] = Path("build/demo/tasks"),
    minutes: Annotated[
        float, typer.Option(min=0.1, help="Of measuring; starting the engines comes on top, about half a minute each.")
    ] = 25.0,
    size: Annotated[
        list[int] | None, typer.Option(min=1, help="Tasks of a synthetic bank; may be repeated. Default 4, 16, 64.")
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            help="Measure only this one (base_routed, plain_again, vllm_lora, routed_4_tasks...) beside "
            "plain and routed; may be repeated."
        ),
    ] = None,
    point: Annotated[
        list[str] | None,
        typer.Option(help="Measure only there: decode_1, decode_8, decode_32, prefill; may be repeated."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the report goes.")] = Path("build/bench"),
) -> None:
    """Tokens per second of the routed layer against plain vLLM and vLLM's own LoRA, engines in turns."""
    work = Path(tempfile.mkdtemp(prefix="seta-bench-"))
    sizes = sorted(set(size or [4, 16, 64]))
    running: Running | None = None
    try:
        found = variants(model, bank, work, sizes)
        wanted = chosen([group.limited_to(list(found)) for group in groups(sizes)], engine, point)
        running = Running(found, render(model, sorted(tasks.glob("*/test.jsonl")), count=8), work)
        out.mkdir(parents=True, exist_ok=True)
        with (out / "slices.jsonl").open("w", encoding="utf-8") as log:
            measured = measure(running, wanted, 60 * minutes, log)
        console.print("starting the server", highlight=False)
        seconds = server_seconds(model, bank, rounds=3)
        write_report(out, summarise(measured, wanted, running.states, seconds, Bank.open(bank)))
    except KeyboardInterrupt:
        console.print("interrupted; nothing but slices.jsonl was written")
        raise typer.Exit(130) from None
    finally:
        if running is not None:
            running.stop()
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    typer.run(main)
