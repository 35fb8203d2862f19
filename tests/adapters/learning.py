"""Two trivial tasks and quick settings for tests that learn on the tiny model."""

from pathlib import Path

import torch
from torch import Tensor

from adapters.bank import Bank, Manifest, expert_sites
from adapters.blocks import Block
from adapters.data import Example
from adapters.settings import LearnSettings

Tasks = dict[str, list[Example]]

SETTINGS = LearnSettings(
    steps=20,
    batch_size=8,
    block_size=32,
    rank=8,
    trunk_layers=1,
    density=1.0,
    learning_rate=3e-2,
    late_start=0.2,
    targets=("v_proj", "o_proj", "down_proj"),
)
QUICK = SETTINGS.model_copy(update={"steps": 2, "batch_size": 4, "density": 0.3})
THINGS = ("sky", "sea", "grass", "rose", "wall", "car", "house", "shirt", "lamp", "door", "book", "river")


def colours(things: tuple[str, ...]) -> list[Example]:
    return [Example(task="colours", prompt=f"What colour is the {thing}?", answer="blue") for thing in things]


def sums(numbers: range) -> list[Example]:
    return [Example(task="sums", prompt=f"Add {n} to {n + 3} for me, please.", answer="seven") for n in numbers]


def shouts(numbers: range) -> list[Example]:
    return [Example(task="shouts", prompt=f"STOP! GO {n}! RUN NOW! " * 3, answer="quiet") for n in numbers]


TRAIN: Tasks = {"colours": colours(THINGS[:8]), "sums": sums(range(8))}
TEST: Tasks = {"colours": colours(THINGS[8:]), "sums": sums(range(20, 24))}
THREE: Tasks = {**TRAIN, "shouts": shouts(range(8))}
THREE_TEST: Tasks = {**TEST, "shouts": shouts(range(20, 24))}


def objects(bank_dir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(bank_dir.glob("objects/sha256/*"))}


def object_names(manifest: Manifest) -> list[str]:
    return [ref.object for ref in manifest.refs]


def expert_rows(bank: Bank, manifest: Manifest, expert_id: str) -> dict[Block, tuple[bytes, bytes]]:
    """The stored bytes of every block of an expert: (layer, target, row, column) → those of A and of B."""
    return {
        (site.layer, site.target, *place): (raw_bytes(a), raw_bytes(b))
        for site in expert_sites(bank.load_expert(manifest, expert_id))
        for place, a, b in zip(site.blocks.tolist(), site.a, site.b, strict=True)
    }


def raw_bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()
