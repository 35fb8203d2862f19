"""The benchmark's command line and its loop: rounds outside, points inside, variants innermost."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from adapters.bank import Bank
from adapters.progress import Steps, console
from seta_runtime.bench.banks import lora_adapter, rank_rows_per_task, synthetic_bank
from seta_runtime.bench.points import MIXED, POINTS, Point
from seta_runtime.bench.report import summarise, write_report
from seta_runtime.bench.start_up import server_seconds
from seta_runtime.bench.variants import Variant
from seta_runtime.bench.worker import ANSWER

LOG_LINES = 20


class Worker:
    """An engine process; `ask` blocks until it has answered. `log`: where its standard error goes."""

    def __init__(self, variant: Variant, prompts: list[list[int]], log: Path) -> None:
        self.variant = variant
        self.log = log
        command = [sys.executable, "-m", "seta_runtime.bench.worker"]
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self.ready = self.ask({"variant": variant.to_json(), "prompts": prompts})

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith(ANSWER):
                return json.loads(line.removeprefix(ANSWER))
        last = self.log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        raise RuntimeError("\n".join([f"engine {self.variant.name} ended with {self.process.wait()}:", *last]))

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def variants(model: str, bank: Path, work: Path, sizes: list[int]) -> list[Variant]:
    """(a) plain, (b) routed and (c) its base requests, (d) vLLM's own LoRA, and (b) on banks of other sizes."""
    source = Bank.open(bank)
    manifest = source.manifest()
    rank = rank_rows_per_task(source)
    previous = [n for n in source.generations() if 0 < n < manifest.generation][-1:]
    adapter = lora_adapter(manifest, work / "adapter", rank)
    chosen = [
        Variant("plain", "plain", model),
        Variant("routed", "routed", model, str(bank.resolve()), (*previous, manifest.generation)),
        Variant("base_routed", "routed", model, str(bank.resolve()), (manifest.generation,), asks_base=True),
        Variant("vllm_lora", "vllm_lora", model, adapter=str(adapter), rank=rank),
    ]
    for size in sizes:
        path = synthetic_bank(source, size, work / f"bank{size}")
        chosen.append(Variant(f"routed_{size}_tasks", "routed", model, str(path), (1,)))
    return chosen


def chosen(found: list[Variant], names: list[str] | None) -> list[Variant]:
    """Those named, and "plain" and "routed", which the figures are relative to. Raises typer.BadParameter."""
    known = [variant.name for variant in found]
    unknown = sorted(set(names or ()) - set(known))
    if unknown:
        raise typer.BadParameter(f"there is no engine {unknown[0]!r}; choose of {', '.join(known)}")
    return [variant for variant in found if not names or variant.name in {"plain", "routed", *names}]


def render(model: str, tests: list[Path], count: int) -> list[list[int]]:
    from transformers import AutoTokenizer

    from adapters.data import read_examples, render_chat

    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    examples = [read_examples(path)[:count] for path in tests]
    return [render_chat(tokenizer, example.chat()) for group in zip(*examples, strict=False) for example in group]


def measure(workers: list[Worker], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Tokens per second: variant → point → one value a round. The first, unrecorded round warms everything up."""
    rates: dict[str, dict[str, list[float]]] = {worker.variant.name: {} for worker in workers}
    with Steps("benchmark", (rounds + 1) * (len(POINTS) * len(workers) + 1), "measurements") as steps:
        for number in range(rounds + 1):
            turn = number % len(workers)  # nobody always comes after the same neighbour
            for point in (*POINTS, MIXED):
                for worker in workers[turn:] + workers[:turn]:
                    if point.is_mixed and worker.variant.name != "routed":
                        continue
                    rate = _rate(worker, point)
                    if number:
                        rates[worker.variant.name].setdefault(point.name, []).append(rate)
                    steps.advance(f"{worker.variant.name} {point.name} {rate:.0f} tokens/s")
    return rates


def _rate(worker: Worker, point: Point) -> float:
    answer = worker.ask(point.__dict__)
    return float(answer["tokens"] / answer["seconds"])


def main(
    model: Annotated[
        str, typer.Option(help="Local directory of the base model.")
    ] = "build/models/SmolLM2-135M-Instruct",
    bank: Annotated[Path, typer.Option(help="The bank to serve.")] = Path("demo/bank"),
    tasks: Annotated[Path, typer.Option(help="Folder with <task>/test.jsonl.")] = Path("build/demo/tasks"),
    rounds: Annotated[int, typer.Option(min=1, help="Recorded rounds; medians are over these.")] = 5,
    size: Annotated[
        list[int] | None, typer.Option(help="Tasks of a synthetic bank; may be repeated. Default 4, 16, 64.")
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(help="Measure only this one (base_routed, vllm_lora, routed_4_tasks...); may be repeated."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the report goes.")] = Path("build/bench"),
) -> None:
    """Tokens per second of the routed layer against plain vLLM and vLLM's own LoRA, interleaved in one run."""
    work = Path(tempfile.mkdtemp(prefix="seta-bench-"))
    workers: list[Worker] = []
    try:
        prompts = render(model, sorted(tasks.glob("*/test.jsonl")), count=8)
        for variant in chosen(variants(model, bank, work, size or [4, 16, 64]), engine):
            console.print(f"starting engine {variant.name}", highlight=False)
            workers.append(Worker(variant, prompts, work / f"{variant.name}.log"))
        rates = measure(workers, rounds)
        engines = {worker.variant.name: worker.ready | _state(worker) for worker in workers}
        while workers:
            workers.pop().stop()
        console.print("starting the server", highlight=False)
        seconds = server_seconds(model, bank, rounds=3)
        write_report(out, summarise(rates, engines, seconds, Bank.open(bank)))
    except KeyboardInterrupt:
        console.print("interrupted; nothing was written")
        raise typer.Exit(130) from None
    finally:
        for worker in workers:
            worker.stop()
        shutil.rmtree(work, ignore_errors=True)


def _state(worker: Worker) -> dict[str, float]:
    """Memory at the end of the run, and the share of tokens that had an expert: was "every request routed" true?"""
    answer = worker.ask(POINTS[0].__dict__)
    state = {"rss_bytes": answer["rss_bytes"]}
    if worker.variant.kind == "routed":
        routed, base = (answer["stats"][name] for name in ("routed_tokens", "base_tokens"))
        state["routed_share_of_tokens"] = round(routed / max(1, routed + base), 4)
    return state


if __name__ == "__main__":
    typer.run(main)
