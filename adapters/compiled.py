"""Decoder layers compiled by torch (inductor) for training: the same computation with other rounding."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import torch
from torch import Tensor, nn

from adapters.data import DataError

Layer = Callable[..., Tensor]
EXAMPLE_ROWS, EXAMPLE_TOKENS = 8, 136
"""What the layers are compiled for, and not for the first batch that comes: the code, and with it the rounding, depends
on the example, and learning that was interrupted has to go on to the same bits. All batches run that code but those of
one row, which torch compiles by themselves."""


def check_compiler() -> None:
    """Raises DataError if there is no C++ compiler where inductor looks for one."""
    name = os.environ.get("CXX", "g++")
    if shutil.which(name) is None:
        raise DataError(f"compiling the layers takes a C++ compiler, and {name!r} is not found; install g++ or set CXX")


def compiled(layers: nn.ModuleList) -> list[Layer]:
    """Each layer by itself, so that all share what is compiled. Raises DataError."""
    check_compiler()
    return [torch.compile(layer.forward, dynamic=True) for layer in layers]
