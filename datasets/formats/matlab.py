"""Arrays from MATLAB files. The files are not trusted."""

from math import prod
from pathlib import Path

import numpy as np
from scipy.io import loadmat, whosmat

from common.errors import UserError
from common.isolation import IsolatedError, in_child

LARGEST = 1 << 29
"""Elements of an array; SVHN's largest has 2.3e8."""


def read_mat(path: Path, name: str) -> np.ndarray:
    """The array `name`, with MATLAB's axis order. Raises UserError naming file and array."""
    if not path.is_file():
        problem = "is not a regular file" if path.exists() else "is missing"
        raise UserError(f"{path} {problem}; put the published file there, or correct data.root")
    try:
        return in_child(lambda: _read(path, name))  # SciPy's reader can crash on a broken file
    except IsolatedError as error:
        reason = " ".join(str(error).split())[:200] or error.kind
        raise UserError(f"cannot read {path} ({reason}); restore the file as published") from None


def _read(path: Path, name: str) -> np.ndarray:
    """Raises ValueError for an array that is missing, or too large, before it is allocated."""
    with path.open("rb") as file:
        # whosmat reads only the headers.
        shapes = {found: shape for found, shape, _ in whosmat(file)}
        if name not in shapes:
            raise ValueError(f"it has no array {name}")
        if prod(shapes[name]) > LARGEST:
            raise ValueError(f"array {name} has more than {LARGEST} elements")
        file.seek(0)
        array: np.ndarray = loadmat(file, variable_names=[name])[name]
        return array


def read_numbers(path: Path, name: str, highest: int) -> list[int]:
    """An array of integers from 1 to `highest`, flattened. Raises UserError naming file, array and a wrong value."""
    flat = read_mat(path, name).reshape(-1)
    if flat.dtype.kind not in "uif":
        raise UserError(f"{path}: array {name} is not numeric; restore the file as published")
    wrong = flat[~np.isin(flat, np.arange(1, highest + 1))]
    if len(wrong):
        raise UserError(f"{path}: array {name} contains {wrong[0]:g}, not an integer from 1 to {highest}; restore it")
    return [int(value) for value in flat]
