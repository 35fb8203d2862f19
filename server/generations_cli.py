"""`seta generations`: look at a running server's generations and change what it serves, over its admin API.

Importing this module imports neither torch nor vLLM.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from adapters.admin_client import DEFAULT_URL, KEY_VARIABLE, AdminClient, AdminError, read_key

from .replicas import activate_all, addresses
from .tables import print_table

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Ship an expert to a running server, watch it, take it back.",
)

Url = Annotated[str, typer.Option(envvar="SETA_ADMIN_URL", help="The server's admin API.")]
KeyFile = Annotated[Path | None, typer.Option(help=f"File with the admin key; else the variable {KEY_VARIABLE}.")]
Generation = Annotated[int, typer.Argument(min=0, help="Its number.", show_default=False)]
Expected = Annotated[int | None, typer.Option("--expect", min=0, help="Refuse unless this generation serves now.")]
AsJson = Annotated[bool, typer.Option("--json", help="The server's answer as it is.")]
_TASKS_SHOWN = 4


@app.command("list")
def list_(url: Url = DEFAULT_URL, key_file: KeyFile = None, as_json: AsJson = False) -> None:
    """What serves, what is in memory, what is on disk, and what each still answers."""
    with _server(url, key_file) as server:
        answer = server.generations()
        if as_json:
            print(json.dumps(answer, indent=1))
            return
        rows = [_generation_row(one) for one in answer["generations"]]
        columns = ("generation", "state", "in flight", "memory", "disk", "created", "tasks")
        print_table(columns, rows, whole=("generation", "in flight", "memory", "disk"))
        in_memory = sum(one["resident_bytes"] is not None for one in answer["generations"])
        base = f"base model: {answer['base_in_flight']} in flight"
        print(f"{in_memory} generations of at most {answer['max_resident']} in memory; {base}")
        for problem in answer["problems"]:
            print(f"seta: {problem}", file=sys.stderr)


@app.command()
def experts(url: Url = DEFAULT_URL, key_file: KeyFile = None, as_json: AsJson = False) -> None:
    """The experts of the generation in service, and their share of the tokens since the server started."""
    with _server(url, key_file) as server:
        answer = server.experts()
        if as_json:
            print(json.dumps(answer, indent=1))
            return
        rows = [
            (one["id"], one["kind"], ", ".join(one["tasks"]), one["rank"], one["num_blocks"],
             _size(one["object_bytes"]), f"{100 * one['token_share']:.1f} %")
            for one in answer["experts"]
        ]  # fmt: skip
        total = answer["total_tokens"]
        rows.append(("(base)", "", "", "", "", "", f"{100 * answer['base_tokens'] / total if total else 0:.1f} %"))
        columns = ("expert", "kind", "tasks", "rank", "blocks", "disk", "tokens")
        print_table(columns, rows, whole=("kind", "rank", "blocks", "disk", "tokens"))
        print(f"generation {answer['generation']}; {total} tokens in all")


@app.command()
def activate(
    generation: Generation,
    expect: Expected = None,
    every: Annotated[
        bool, typer.Option("--all", help="On each server behind the URL's host name; all or none.")
    ] = False,
    url: Url = DEFAULT_URL,
    key_file: KeyFile = None,
) -> None:
    """Serve a generation of the server's bank: new requests get it, running ones keep theirs."""
    with _server(url, key_file) as server:
        if every:
            servers = [AdminClient(one, read_key(key_file)) for one in addresses(url)]
            activate_all(servers, generation, expect, print)
        else:
            _say_change(server.activate(generation, expect))


@app.command()
def rollback(expect: Expected = None, url: Url = DEFAULT_URL, key_file: KeyFile = None) -> None:
    """Serve what served before."""
    with _server(url, key_file) as server:
        expected = server.generations()["serving"] if expect is None else expect
        _say_change(server.rollback(expected))


@app.command()
def upload(
    bank: Annotated[Path | None, typer.Option(help="A local bank: only what the server lacks is sent.")] = None,
    generation: Annotated[int | None, typer.Option(min=0, help="With --bank. Default: its current one.")] = None,
    archive: Annotated[Path | None, typer.Option(help="Instead of --bank: a file made by `seta bank export`.")] = None,
    url: Url = DEFAULT_URL,
    key_file: KeyFile = None,
) -> None:
    """Bring a generation into the server's bank. It serves once it is activated."""
    with _server(url, key_file) as server:
        if (bank is None) == (archive is None):
            raise AdminError("give either --bank or --archive")
        if archive is not None:
            number, sent = _send_archive(server, archive)
        else:
            assert bank is not None
            number, sent = _send_generation(server, bank, generation)
        print(f"generation {number} is in the server's bank, {_size(sent)} sent; seta generations activate {number}")


@app.command()
def retire(generation: Generation, url: Url = DEFAULT_URL, key_file: KeyFile = None) -> None:
    """Take a generation out of memory, once its last request has ended."""
    with _server(url, key_file) as server:
        in_flight = server.retire(generation)["in_flight"]
        when = f"after its last request, {in_flight} in flight" if in_flight else "now"
        print(f"generation {generation} takes no new request and leaves memory {when}")


@app.command()
def pin(generation: Generation, url: Url = DEFAULT_URL, key_file: KeyFile = None) -> None:
    """Keep a generation in memory, loading it if need be: clients can ask for it as NAME@<number>."""
    with _server(url, key_file) as server:
        size = _size(server.pin(generation)["resident_bytes"])
        print(f"generation {generation} stays in memory ({size}) until it is unpinned or the server ends")


@app.command()
def unpin(generation: Generation, url: Url = DEFAULT_URL, key_file: KeyFile = None) -> None:
    """Let a generation leave memory again when another needs its place."""
    with _server(url, key_file) as server:
        server.unpin(generation)
        print(f"generation {generation} may leave memory")


@contextmanager
def _server(url: str, key_file: Path | None) -> Iterator[AdminClient]:
    """The server; what it refuses is one line."""
    try:
        yield AdminClient(url, read_key(key_file))
    except AdminError as error:
        code = f" [{error.code}]" if error.code else ""
        print(f"seta: {error}{code}", file=sys.stderr)
        raise typer.Exit(1) from None


def _send_archive(server: AdminClient, archive: Path) -> tuple[int, int]:
    try:
        with archive.open("rb") as file:
            size = archive.stat().st_size
            return server.upload_archive(iter(lambda: file.read(1 << 20), b""), size)["generation"], size
    except OSError as error:
        raise AdminError(f"--archive {archive} cannot be read ({error.strerror})") from None


def _send_generation(server: AdminClient, path: Path, generation: int | None) -> tuple[int, int]:
    from adapters.bank import Bank, BankError  # imports torch

    try:
        bank = Bank.open(path)
        manifest = bank.manifest(generation)
        return manifest.generation, server.upload(bank, manifest)
    except BankError as error:
        raise AdminError(f"--bank {path}: {error}") from None


def _say_change(change: dict[str, Any]) -> None:
    serving, previous = change["serving"], change["previous"]
    if serving == previous:
        print(f"generation {serving} serves already")
    else:
        print(f"generation {serving} serves, {previous} did before ({change['seconds']:.2f} s)")


def _generation_row(one: dict[str, Any]) -> tuple[Any, ...]:
    state = one["state"] + (", pinned" if one["is_pinned"] else "") + ("" if one["is_on_disk"] else ", not on disk")
    memory = "" if one["resident_bytes"] is None else _size(one["resident_bytes"])
    created = one["created"].replace("T", " ").removesuffix("Z")
    in_flight = "" if one["resident_bytes"] is None else one["in_flight"]
    return one["generation"], state, in_flight, memory, _size(one["object_bytes"]), created, _names(one["tasks"])


def _names(tasks: list[str]) -> str:
    """All of a few; of many only the newest. --json has them all."""
    return ", ".join(tasks) if len(tasks) <= _TASKS_SHOWN else f"{len(tasks)}, newest {tasks[-1]}"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 30):.2f} GiB" if num_bytes >= 1 << 30 else f"{num_bytes / (1 << 20):.1f} MiB"
