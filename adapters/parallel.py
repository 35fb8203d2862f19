"""The processes of one training run: those that `accelerate launch`, torchrun or mpirun started, else just this one.

Data parallel: every process draws the same batches, takes its part of each, and adds up the gradients with the others,
so all take the same steps. The first one alone writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from adapters.progress import console, stdout

T = TypeVar("T")

SIZE_VARIABLES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Where torchrun and the MPI launchers say how many processes they started."""


class ParallelError(Exception):
    """Several processes were asked for and cannot be had this way."""


@dataclass(frozen=True)
class Processes:
    """This process is number `index` of `count`."""

    index: int = 0
    count: int = 1

    @classmethod
    def join(cls, environment: Mapping[str, str] = os.environ) -> Processes:
        """Meet the others. Raises ParallelError where accelerate was asked for several and started one."""
        if not any(int(environment.get(name, "1")) > 1 for name in SIZE_VARIABLES):
            if "MASTER_PORT" in environment and "ACCELERATE_MIXED_PRECISION" in environment:
                raise ParallelError(
                    "accelerate launch --cpu starts one process, however many are asked for, unless it is given MPI; "
                    "use: accelerate launch --multi_gpu --num_processes N (it takes the CPU where there is no GPU)"
                )
            return cls()
        from accelerate import PartialState

        state = PartialState(cpu=True)
        return cls(state.process_index, state.num_processes)

    @property
    def is_main(self) -> bool:
        return self.index == 0

    def part(self, items: Sequence[T]) -> list[T]:
        """This process's part: together the parts are all items, each once."""
        return list(items[self.index :: self.count])

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes, which all call this with the same shapes. float32."""
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten().float() for tensor in tensors])
        torch.distributed.all_reduce(flat)
        for tensor, summed in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(summed.view_as(tensor))

    def take_first(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by the first process's, as `add_up` does by the sum."""
        if not self.is_main:
            for tensor in tensors:
                tensor.zero_()
        self.add_up(tensors)

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            torch.distributed.barrier()


ALONE = Processes()


@contextmanager
def joined() -> Iterator[Processes]:
    """Meet the other processes, and part from them; all but the first one are silent. Raises ParallelError."""
    processes = Processes.join()
    if not processes.is_main:
        console.quiet = stdout.quiet = True
    try:
        yield processes
    finally:
        if processes.count > 1:
            torch.distributed.destroy_process_group()
