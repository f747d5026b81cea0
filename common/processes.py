"""Several processes that share the images of a step: who this one is, what it holds, and what they tell each other.

With one process everything here is free and changes nothing. Every process must call these functions, in one order.
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
    """This process's place among those of the job."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes files and speaks to the user."""
        return self.rank == 0

    @property
    def is_distributed(self) -> bool:
        """Whether there are others."""
        return self.world_size > 1

    def block(self, count: int) -> range:
        """Which of `count` images this process measures: neighbours, so that by rank they are in their old order.

        The first process has at least as many as any other.
        """
        share, more = divmod(count, self.world_size)
        start = self.rank * share + min(self.rank, more)
        return range(start, start + share + (self.rank < more))


def processes() -> Processes:
    """This process's place; that of a lone one outside of a process group."""
    if not (dist.is_available() and dist.is_initialized()):
        return Processes()
    return Processes(dist.get_rank(), dist.get_world_size())


def own_rows(draw: Callable[[int], Tensor], batch: int, dim: int = 0) -> Tensor:
    """This process's part of random numbers that are drawn for the batches of all processes together.

    `draw(count)` gives `count` rows along `dim`, from a generator that is in one state everywhere; `batch` is what
    every process holds; images are dealt like cards. So 2 processes with 16 images each get the numbers of 1 with 32.
    """
    here = processes()
    drawn = draw(batch * here.world_size)
    return drawn.unflatten(dim, (batch, here.world_size)).select(dim + 1, here.rank) if here.is_distributed else drawn


def all_rows(rows: Tensor) -> Tensor:
    """[n, ...] of each process -> [world_size * n, ...], in the order of ranks, for losses that look at a whole batch.

    Differentiable in this process's own rows, provided that every process computes the same loss from the result and
    gradients are then averaged over processes, as DDP does.
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
        """Own rows only, times the number of processes, by which the average will divide."""
        here = processes()
        return gradient.chunk(here.world_size)[here.rank] * here.world_size


def totals(*numbers: int) -> list[int]:
    """The sum of each number over all processes. Waits for the others, not for a device."""
    return _reduced(numbers, dist.ReduceOp.SUM)


def largest(*numbers: int) -> list[int]:
    """The largest of each number over all processes."""
    return _reduced(numbers, dist.ReduceOp.MAX)


def _reduced(numbers: Sequence[int], operation: Any) -> list[int]:
    if not processes().is_distributed:
        return list(numbers)
    values = torch.tensor(numbers, dtype=torch.int64)
    dist.all_reduce(values, operation)
    return values.tolist()


def gather(value: T) -> list[T]:
    """The value of every process, in the order of ranks, on all of them."""
    here = processes()
    values: list[Any] = [value]
    if here.is_distributed:
        values = [None] * here.world_size
        dist.all_gather_object(values, value)
    return values


def gather_blocks(values: list[T]) -> list[T]:
    """The values of all processes as one list, in the order of ranks: that of the images (`Processes.block`)."""
    return [value for block in gather(values) for value in block]


def barrier() -> None:
    """Go on when every process has come here: what the first one has written is there for all."""
    totals(0)
