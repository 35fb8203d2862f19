"""Where a task is while it is learned, kept in the bank's directory, so that an end at any moment costs little.

    bank/.learning/checkpoint.safetensors    the tensors; what is no tensor is JSON in the file's metadata

The file is replaced as a whole (`adapters.bank.files.atomic_write`) and removed when its task is published. It belongs
to one recipe, the task's examples and settings, on one generation: nothing else goes on from it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from adapters.bank import Bank, BankNotFound
from adapters.bank.files import atomic_write, read_file, safe_path, write_error

DIRECTORY = ".learning"
CHECKPOINT = f"{DIRECTORY}/checkpoint.safetensors"
MAX_CHECKPOINT_BYTES = 64 << 30
INFO = "seta"
"""The key of the JSON in the file's metadata."""


class CheckpointError(Exception):
    """What an interrupted call left cannot be gone on from by this one."""


class CheckpointInfo(BaseModel):
    """`parent_sha256`: of the manifest that the task builds on. `settings`: for people. `step`: those that are done.

    `state`: what the trainer has besides tensors: random numbers' states, the batch order, losses.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    format_version: Literal[1] = 1
    task: str
    recipe_sha256: str
    parent_sha256: str
    settings: dict[str, JsonValue]
    started: datetime
    step: Annotated[int, Field(ge=0)] = 0
    state: dict[str, JsonValue] = {}


@dataclass(frozen=True)
class Checkpoint:
    info: CheckpointInfo
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


def read_checkpoint(bank: Bank) -> Checkpoint | None:
    """What an interrupted call left, None if nothing. Raises CheckpointError, BankError."""
    try:
        data = read_file(bank.root, CHECKPOINT, MAX_CHECKPOINT_BYTES)
    except BankNotFound:
        return None
    try:
        tensors = load(data)
        length = int.from_bytes(data[:8], "little")
        info = CheckpointInfo.model_validate_json(json.loads(data[8 : 8 + length])["__metadata__"][INFO])
    except (SafetensorError, KeyError, ValueError, ValidationError) as error:
        raise CheckpointError(
            f"{CHECKPOINT} is damaged, or of another version of this software ({str(error).splitlines()[0]}); "
            "--fresh drops it and learns its task from the start"
        ) from None
    return Checkpoint(info, tensors)


def write_checkpoint(bank: Bank, checkpoint: Checkpoint) -> None:
    """Replace the checkpoint by this one, or leave the one before. Raises BankIOError."""
    directory = safe_path(bank.root, DIRECTORY)
    if not directory.is_dir():
        try:
            bank.disk.mkdir(directory)
            bank.disk.fsync_dir(bank.root)
        except OSError as error:
            raise write_error(DIRECTORY, error) from error
    tensors = {name: tensor.detach().contiguous() for name, tensor in checkpoint.tensors.items()}
    data = save(tensors, metadata={INFO: checkpoint.info.model_dump_json()})
    atomic_write(bank.disk, bank.root, CHECKPOINT, [data])


def remove_checkpoint(bank: Bank) -> None:
    """Also what a process that was killed while it wrote one left. Raises BankIOError."""
    directory = safe_path(bank.root, DIRECTORY)
    try:
        if directory.is_dir():
            bank.disk.unlink(directory / "checkpoint.safetensors")
            shutil.rmtree(directory)
    except OSError as error:
        raise write_error(DIRECTORY, error) from error
