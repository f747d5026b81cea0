"""Distributed helpers: rank and world size, this process's images, and collectives.

With one process they cost nothing and return their input. All processes must call the collectives, in the same order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """Rank of this process and number of processes in the job."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process, of rank 0, writes files and messages."""
        return self.rank == 0

    @property
    def is_distributed(self) -> bool:
        """Whether there is more than one process."""
        return self.world_size > 1

    def block(self, count: int) -> range:
        """Which of `count` images this process evaluates: a contiguous block, so that blocks by rank keep the order.

        Sizes differ by at most one; the first process has a largest block.
        """
        size, remainder = divmod(count, self.world_size)
        start = self.rank * size + min(self.rank, remainder)
        return range(start, start + size + (self.rank < remainder))


def processes() -> Processes:
    """Rank and world size of the process group; 0 and 1 without one."""
    if not (dist.is_available() and dist.is_initialized()):
        return Processes()
    return Processes(dist.get_rank(), dist.get_world_size())


def own_rows(draw: Callable[[int], Tensor], batch: int, dim: int = 0) -> Tensor:
    """This process's rows of random numbers that are drawn for the batches of all processes together.

    `draw(count)` returns `count` rows along `dim`, from a generator in the same state in every process; `batch` is the
    batch size of one process. Row i belongs to process i mod world_size, as images do: 2 processes with 16 images each
    get the numbers of 1 process with 32.
    """
    here = processes()
    drawn = draw(batch * here.world_size)
    # Row i is at (i // world_size, i % world_size) of the unflattened dimension.
    return drawn.unflatten(dim, (batch, here.world_size)).select(dim + 1, here.rank) if here.is_distributed else drawn


def all_rows(rows: Tensor) -> Tensor:
    """[n, ...] of each process -> [world_size * n, ...] by rank, for losses that depend on the whole batch.

    Differentiable with respect to this process's own rows, provided that every process computes the same loss from the
    result and gradients are then averaged over processes, as DDP does.
    """
    return _AllRows.apply(rows) if processes().is_distributed else rows


class _AllRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """The gradient of this process's rows, times the world size because DDP's average divides by it."""
        here = processes()
        return gradient.chunk(here.world_size)[here.rank] * here.world_size


def totals(*numbers: int) -> list[int]:
    """Sum of each number over all processes. Runs on the CPU: it does not synchronise with a GPU."""
    return _reduced(numbers, dist.ReduceOp.SUM)


def largest(*numbers: int) -> list[int]:
    """Maximum of each number over all processes."""
    return _reduced(numbers, dist.ReduceOp.MAX)


def _reduced(numbers: Sequence[int], operation: Any) -> list[int]:
    if not processes().is_distributed:
        return list(numbers)
    values = torch.tensor(numbers, dtype=torch.int64)
    dist.all_reduce(values, operation)
    return values.tolist()


def gather(value: T) -> list[T]:
    """The value of every process by rank, in all processes. Values are pickled."""
    here = processes()
    values: list[Any] = [value]
    if here.is_distributed:
        values = [None] * here.world_size
        dist.all_gather_object(values, value)
    return values


def gather_blocks(values: list[T]) -> list[T]:
    """Concatenate the lists of all processes by rank: the order of the images (`Processes.block`)."""
    return [value for block in gather(values) for value in block]


def barrier() -> None:
    """Wait for all processes, for example until the first one has written a file."""
    totals(0)
