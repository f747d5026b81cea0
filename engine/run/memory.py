"""Batch sizes that are halved when the accelerator runs out of memory."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from common.errors import UserError

T = TypeVar("T")


class AutoBatchSize:
    """Run batched work in pieces of at most `limit` images; running out of memory halves the limit permanently."""

    def __init__(self, limit: int, log: Callable[[str], None]) -> None:
        """`log` gets a line each time the limit is halved."""
        self.limit, self.log = limit, log

    def __call__(self, work: Callable[[slice], Tensor], count: int) -> Tensor:
        """The tensors of `pieces`, concatenated."""
        return torch.cat(self.pieces(work, count))

    def pieces(self, work: Callable[[slice], T], count: int) -> list[T]:
        """Call `work(slice)` over 0 .. count - 1, in order. Raises UserError if a single image does not fit."""
        done: list[T] = []
        start = 0
        while start < count:
            size = min(self.limit, count - start)
            outcome = _unless_out_of_memory(work, slice(start, start + size))
            if outcome is None:
                self._halve(size)
            else:
                done.append(outcome)
                start += size
        return done

    def _halve(self, size: int) -> None:
        if size == 1:
            raise UserError("out of memory with a single image: use a smaller model or data.image_size")
        self.limit = size // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.log(f"out of memory; continuing with {self.limit} images at a time")


def _unless_out_of_memory(work: Callable[[slice], T], piece: slice) -> T | None:
    """In its own function, because a handled error's traceback keeps the failed piece's tensors alive."""
    try:
        return work(piece)
    except torch.OutOfMemoryError:
        return None
