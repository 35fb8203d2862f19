"""A real server process on a tiny random model and bank: up in a few seconds, fast enough to be asked a lot."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.server.process import ServerProcess, start_server, stop_server, wait_until_ready
from tests.seta_runtime.random_bank import make_random_bank
from tests.tiny import make_tiny_model

OPTIONS = ("--max-model-len", "1024", "--dtype", "float32", "--engine-arg", "block_size=32")


@contextmanager
def tiny_server(folder: Path, *options: str) -> Iterator[ServerProcess]:
    """Ready when entered, ended afterwards; `folder` gets the model, the bank and the log."""
    model = make_tiny_model(folder / "model")
    bank = make_random_bank(folder / "bank", model, ("v_proj",))
    running = start_server(model, bank.root, folder / "log", *OPTIONS, *options)
    try:
        wait_until_ready(running)
        yield running
    finally:
        stop_server(running)
