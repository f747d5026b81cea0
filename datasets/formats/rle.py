"""The run-length masks of the SIIM-ACR competition."""

from collections.abc import Iterable

import numpy as np

EMPTY = "-1"
"""The text for an image without an object."""


def decode_runs(texts: Iterable[str], size_hw: tuple[int, int]) -> np.ndarray:
    """[H, W] bool: the union of several masks.

    A text is pairs (gap since the end of the previous run, run length), in pixels counted DOWN the columns, or `EMPTY`.
    Raises ValueError on anything else and on runs that end outside the image.
    """
    height, width = size_hw
    flat = np.zeros(width * height, dtype=bool)
    for text in texts:
        if text != EMPTY:
            _add_runs(flat, text)
    return flat.reshape(width, height).T


def _add_runs(flat: np.ndarray, text: str) -> None:
    numbers = text.split()
    if len(numbers) % 2 or not all(each.isascii() and each.isdigit() and len(each) < 10 for each in numbers):
        raise ValueError("its runs are not pairs of whole numbers")
    ends = np.cumsum(np.array(numbers, dtype=np.int64))  # start, end, start, end, ...
    if len(ends) and ends[-1] > flat.size:
        raise ValueError("its runs end outside the image")
    for start, end in ends.reshape(-1, 2):
        flat[start:end] = True
