"""The run-length masks: relative starts, down the columns."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.formats.rle import decode_runs


def encode(mask: np.ndarray) -> str:
    """The competition's format, pixel by pixel: gap since the end of the last run, length, down the columns."""
    words, position, end = [], 0, 0
    height, width = mask.shape
    while position < height * width:
        length = 0
        while position + length < height * width and mask[(position + length) % height, (position + length) // height]:
            length += 1
        if length:
            words += [position - end, length]
            end = position + length
        position += length or 1
    return " ".join(map(str, words)) or "-1"


def test_a_mask_by_hand() -> None:
    mask = decode_runs(["1 2 2 1"], (3, 4))
    assert np.argwhere(mask).tolist() == [[1, 0], [2, 0], [2, 1]]


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**36 - 1))
def test_there_and_back(height: int, width: int, bits: int) -> None:
    mask = np.array([bits >> i & 1 for i in range(height * width)], dtype=bool).reshape(height, width)
    assert np.array_equal(decode_runs([encode(mask)], (height, width)), mask)


def test_the_union_of_several_rows() -> None:
    mask = decode_runs(["0 2", "-1", "1 2", "11 1"], (3, 4))
    assert np.argwhere(mask.T).tolist() == [[0, 0], [0, 1], [0, 2], [3, 2]]
    assert not decode_runs([], (2, 2)).any() and not decode_runs(["-1"], (2, 2)).any()


@pytest.mark.parametrize("text", ["1", "1 2 3", "a b", "1 -2", "1.0 2", "٣ ١", "1 99999999999", "-1 -1"])
def test_what_is_no_pairs(text: str) -> None:
    with pytest.raises(ValueError, match="not pairs of whole numbers"):
        decode_runs([text], (3, 4))


def test_runs_that_leave_the_image() -> None:
    assert decode_runs(["0 12"], (3, 4)).all()
    with pytest.raises(ValueError, match="end outside the image"):
        decode_runs(["0 13"], (3, 4))
    with pytest.raises(ValueError, match="end outside the image"):
        decode_runs(["0 1 " + "999999999 999999999 " * 50], (3, 4))
