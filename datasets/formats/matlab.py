"""MATLAB files that data sets publish as indices or as containers of images. The files are not trusted."""

from math import prod
from pathlib import Path

import numpy as np
from scipy.io import loadmat, whosmat

from common.errors import UserError
from common.isolation import IsolatedError, in_child

LARGEST = 1 << 29
"""Values of an array; SVHN's largest has 2.3e8."""


def read_mat(path: Path, name: str) -> np.ndarray:
    """The array of this name, in MATLAB's own order of axes. Raises UserError naming file and array."""
    if not path.is_file():
        raise UserError(f"{path} is missing; put the published file there, or correct data.root")
    try:
        return in_child(lambda: _read(path, name))  # SciPy's reader crashes on some broken files
    except IsolatedError as error:
        reason = " ".join(str(error).split())[:200] or error.kind
        raise UserError(f"cannot read {path} ({reason}); restore the file as published") from None


def _read(path: Path, name: str) -> np.ndarray:
    """Raises ValueError for an array that is not there or too large to be meant, before memory is taken for it."""
    with path.open("rb") as file:
        shapes = {found: shape for found, shape, _ in whosmat(file)}
        if name not in shapes:
            raise ValueError(f"it holds no array {name}")
        if prod(shapes[name]) > LARGEST:
            raise ValueError(f"array {name} has over {LARGEST} values")
        file.seek(0)
        array: np.ndarray = loadmat(file, variable_names=[name])[name]
        return array


def read_numbers(path: Path, name: str, highest: int) -> list[int]:
    """An array of whole numbers from 1 to `highest`. Raises UserError naming file, array and the first wrong one."""
    flat = read_mat(path, name).reshape(-1)
    if flat.dtype.kind not in "uif":
        raise UserError(f"{path}: array {name} holds no numbers; restore the file as published")
    wrong = flat[~np.isin(flat, np.arange(1, highest + 1))]
    if len(wrong):
        raise UserError(f"{path}: array {name} holds {wrong[0]:g}, not a whole number from 1 to {highest}; restore it")
    return [int(value) for value in flat]
