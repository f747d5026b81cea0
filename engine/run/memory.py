"""Work that is halved where it does not fit into the accelerator's memory."""

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from common.errors import UserError
from datasets.loader import lost_worker

T = TypeVar("T")


class AutoBatchSize:
    """Runs batched work in pieces of at most `limit` images; out of memory halves the limit for good, and says so."""

    def __init__(self, limit: int, say: Callable[[str], None]) -> None:
        self.limit, self.say = limit, say

    def __call__(self, work: Callable[[slice], Tensor], count: int) -> Tensor:
        """`pieces`, concatenated."""
        return torch.cat(self.pieces(work, count))

    def pieces(self, work: Callable[[slice], T], count: int) -> list[T]:
        """`work(slice)` over 0 .. count - 1, in order. Raises UserError where a single image is too much."""
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
        self.say(f"out of memory; going on with {self.limit} images at a time")


def _unless_out_of_memory(work: Callable[[slice], T], piece: slice) -> T | None:
    """A function of its own: while the error is handled, it keeps the failed piece's tensors alive."""
    try:
        return work(piece)
    except torch.OutOfMemoryError:
        return None


GIB = 2**30


@contextlib.contextmanager
def machine_errors(advice: str, device: torch.device) -> Iterator[None]:
    """Failures of the machine as one line: memory (with `advice` on what to change), a loading process that died."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        text = " ".join(str(error).split())
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in text:
            raise UserError(f"out of memory on {_memory(device, text)}; {advice}") from None
        if lost := lost_worker(error):
            raise lost from None
        raise


def _memory(device: torch.device, text: str) -> str:
    asked = re.search(r"allocate (\d[\d.]* ?\w+)", text)
    request = f" (asked for {asked[1]})" if asked else ""
    if device.type != "cuda":
        return f"the CPU{request}"
    free, total = torch.cuda.mem_get_info(device)
    peak = torch.cuda.max_memory_allocated(device)
    return f"{device}{request}: {total / GIB:.1f} GiB, {free / GIB:.1f} free, this process's peak {peak / GIB:.1f}"
