"""AutoBatchSize: work that does not fit is done in smaller pieces, in order, with a message."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from common.errors import UserError
from engine.run.memory import AutoBatchSize


def room_for(images: int, seen: list[int]) -> Callable[[slice], Tensor]:
    """Work that runs out of memory on more than `images` images; appends the requested sizes to `seen`."""

    def work(piece: slice) -> Tensor:
        seen.append(piece.stop - piece.start)
        if seen[-1] > images:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.arange(piece.start, piece.stop)

    return work


@pytest.mark.parametrize("count", [1, 5, 8, 19])
@pytest.mark.parametrize("limit", [1, 3, 8, 64])
def test_pieces_are_no_larger_than_the_limit_and_in_order(count: int, limit: int) -> None:
    seen: list[int] = []
    messages: list[str] = []
    done = AutoBatchSize(limit, messages.append)(room_for(100, seen), count)
    assert done.tolist() == list(range(count))
    assert max(seen) <= limit and len(seen) == -(-count // limit) and not messages


def test_out_of_memory_halves_for_good_and_says_so() -> None:
    seen: list[int] = []
    messages: list[str] = []
    batch_size = AutoBatchSize(16, messages.append)
    assert batch_size(room_for(5, seen), 19).tolist() == list(range(19))
    assert seen == [16, 8, 4, 4, 4, 4, 3]
    assert messages == [f"out of memory; continuing with {n} images at a time" for n in (8, 4)]
    seen.clear()
    assert batch_size(room_for(5, seen), 6).tolist() == list(range(6))
    assert seen == [4, 2] and len(messages) == 2


def test_the_size_that_failed_is_halved_not_the_limit() -> None:
    """Otherwise a short last batch would be tried again at the same size."""
    seen: list[int] = []
    batch_size = AutoBatchSize(64, lambda text: None)
    assert batch_size(room_for(4, seen), 6).tolist() == list(range(6))
    assert seen == [6, 3, 3] and batch_size.limit == 3


def test_what_was_done_before_is_not_done_again() -> None:
    """Memory may run out after some pieces."""
    seen: list[slice] = []

    def work(piece: slice) -> Tensor:
        seen.append(piece)
        if len(seen) == 2:
            raise torch.OutOfMemoryError
        return torch.arange(piece.start, piece.stop)

    assert AutoBatchSize(4, lambda text: None)(work, 8).tolist() == list(range(8))
    assert seen == [slice(0, 4), slice(4, 8), slice(4, 6), slice(6, 8)]


def test_one_image_too_many_is_the_users_error() -> None:
    messages: list[str] = []
    with pytest.raises(UserError, match="single image.*data.image_size"):
        AutoBatchSize(4, messages.append)(room_for(0, []), 3)
    assert messages == ["out of memory; continuing with 1 images at a time"]


def test_other_errors_pass() -> None:
    def work(piece: slice) -> Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        AutoBatchSize(4, lambda text: None)(work, 3)


def test_pieces_of_anything() -> None:
    assert AutoBatchSize(2, lambda text: None).pieces(lambda piece: (piece.start, piece.stop), 5) == [
        (0, 2),
        (2, 4),
        (4, 5),
    ]
