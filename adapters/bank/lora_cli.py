"""`seta bank import-lora` and `export-lora`: a PEFT LoRA into a bank, a task's experts out of it."""

from pathlib import Path
from typing import Annotated, Literal

import typer

BankPath = Annotated[Path, typer.Argument(help="the bank's directory", show_default=False)]
Task = Annotated[str, typer.Option(help="the task's name")]


def import_lora(
    bank: BankPath,
    adapter: Annotated[Path, typer.Argument(help="the directory that PEFT's save_pretrained wrote")],
    task: Task,
    examples: Annotated[
        Path,
        typer.Option(help='a few dozen prompts of the task, JSON lines: {"prompt" | "messages"}, "answer" if known'),
    ],
    model: Annotated[
        str | None, typer.Option(help="the base model: a directory or a hub id [default: the bank's]")
    ] = None,
    held_out: Annotated[float, typer.Option(min=0.0, max=0.9, help="share of the examples to measure on")] = 0.2,
    answer_tokens: Annotated[int, typer.Option(min=1, help="longest answer that the adapter gives")] = 64,
    adapt_steps: Annotated[
        int,
        typer.Option(min=0, help="steps of training on the LoRA's own predictions; 0: the expert is exactly the LoRA"),
    ] = 60,
    max_tokens: Annotated[int, typer.Option(min=16, help="longer prompts are left out, and counted")] = 1024,
    trunk_layers: Annotated[
        int | None, typer.Option(min=1, help="new bank only: layers without experts [default: what the LoRA allows]")
    ] = None,
    block_size: Annotated[int | None, typer.Option(min=8, help="new bank only: edge of a sub-block")] = None,
    dtype: Annotated[Literal["bfloat16", "float32"], typer.Option(help="what the base model computes in")] = "bfloat16",
    seed: Annotated[int, typer.Option(help="which examples are held back")] = 0,
) -> None:
    """Make a PEFT LoRA one more task of the bank (made if it does not exist), with a gate fitted on example prompts."""
    from adapters.cli import clear_errors, model_of

    with clear_errors():
        from adapters.lora.importing import ImportSettings, import_lora

        settings = ImportSettings(
            held_out, answer_tokens, max_tokens, adapt_steps, seed, dtype, trunk_layers, block_size
        )
        done = import_lora(bank, model_of(bank, model), adapter, task, examples, settings)
        expert, score, exact = done.manifest.experts[-1], done.score, done.exact
        typer.echo(f"generation {done.manifest.generation}: {expert.num_blocks} sub-blocks of rank {expert.rank}")
        typer.echo(f"of {score.num_test} prompts held back {score.routing:.1f} % are routed to it at their end and")
        typer.echo(f"{score.accuracy:.1f} % get the greedy answer that the LoRA alone gives")
        if score != exact:
            typer.echo(f"(adapted to the gate; the LoRA's very weights: {exact.accuracy:.1f} %)")


def export_lora(
    bank: BankPath,
    out: Annotated[Path, typer.Argument(help="a new directory", show_default=False)],
    task: Task,
    generation: Annotated[int | None, typer.Option("--generation", "-g", help="its number [default: CURRENT]")] = None,
) -> None:
    """Write a task's experts as a PEFT LoRA. It has no gate: where it is loaded, it always acts."""
    from adapters.cli import clear_errors

    with clear_errors():
        from adapters.lora.exporting import export_lora

        done = export_lora(bank, task, out, generation)
        typer.echo(
            f"generation {done.generation}: {', '.join(done.experts)} as a LoRA of rank {done.rank} on "
            f"{len(done.deltas)} projections"
        )
