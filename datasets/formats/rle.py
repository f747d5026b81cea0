"""The run-length masks of the SIIM-ACR competition."""

from collections.abc import Iterable

import numpy as np

EMPTY = "-1"
"""What stands in place of the runs where there is no object."""


def decode_runs(texts: Iterable[str], size_hw: tuple[int, int]) -> np.ndarray:
    """[H, W] bool: the union of several masks.

    A text is pairs (gap since the end of the previous run, length of the run), in pixels counted DOWN the columns, or
    `EMPTY`. Raises ValueError, saying why, on anything else and on runs that leave the image.
    """
    height, width = size_hw
    flat = np.zeros(width * height, dtype=bool)
    for text in texts:
        if text != EMPTY:
            _add_runs(flat, text)
    return flat.reshape(width, height).T


def _add_runs(flat: np.ndarray, text: str) -> None:
    words = text.split()
    if len(words) % 2 or not all(word.isascii() and word.isdigit() and len(word) < 10 for word in words):
        raise ValueError("its runs are not pairs of whole numbers")
    ends = np.cumsum(np.array(words, dtype=np.int64))
    if len(ends) and ends[-1] > flat.size:
        raise ValueError("its runs end outside the image")
    for start, end in ends.reshape(-1, 2):
        flat[start:end] = True
