"""MATLAB files that data sets publish as indices or as containers of pictures."""

import zlib
from pathlib import Path

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from common.errors import UserError


def read_mat(path: Path, name: str) -> np.ndarray:
    """The array of this name, in MATLAB's own order of axes. Raises UserError naming file and array."""
    try:
        with path.open("rb") as file:
            content = loadmat(file, variable_names=[name])
    except FileNotFoundError:
        raise UserError(f"{path} is missing; put the published file there, or correct data.root") from None
    except (MatReadError, OSError, ValueError, TypeError, NotImplementedError, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot read {path} ({reason}); restore the file as published") from None
    if name not in content:
        raise UserError(f"{path} holds no array {name}; restore the file as published")
    array: np.ndarray = content[name]
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
