"""Which SIIM-ACR images show a chest tube: {image id: 0 or 1} from a pickle, a CSV or a JSON file.

A pickle can run code. This unpickler builds a plain dict of strings and numbers and nothing else: no class or function
of any module is looked up, and NumPy scalars are rebuilt here from their bytes.
"""

import io
import json
import pickle
import pickletools
import re
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.files import parse_json, read_file
from common.isolation import IsolatedError, in_child
from datasets.formats.tables import by_text, read_csv

MAX_BYTES = 1 << 26
"""Of a file."""
SECONDS, MEMORY = 20, 1 << 28
"""Limits of unpickling; bytes in addition to what the process has."""
TUBE_COLUMNS = ("ImageId", "tube")
SCALAR = re.compile(r"b1|[iu][1248]|f[248]|U\d{1,3}")
"""Codes of the NumPy types that a pickle may contain."""


def read_tube_labels(path: Path) -> dict[str, bool]:
    """Image id -> whether a tube is visible. Raises UserError naming the file and what is wrong in it.

    .csv: columns ImageId, tube. .json: one object. Any other ending: the published pickle.
    """
    if path.suffix.lower() == ".csv":
        return _from_csv(path)
    try:
        data = read_file(path, MAX_BYTES)
    except OSError as error:
        raise UserError(f"--pkl_file_path: cannot read {path}: {error.strerror or error}") from None
    return _checked(path, _from_json(path, data)) if path.suffix.lower() == ".json" else _from_pickle(path, data)


def _checked(path: Path, table: Any) -> dict[str, bool]:
    if not isinstance(table, dict) or not table:
        raise UserError(f"{path} has no table {{image id: 0 or 1}}; give the published file, or a .csv or .json")
    found = {_text(path, key): _flag(path, key, value) for key, value in table.items()}
    if len(found) < len(table):
        raise UserError(f"{path} has an image id twice, with and without blanks around it; keep one of the two")
    return found


def _from_csv(path: Path) -> dict[str, bool]:
    rows = by_text(read_csv(path, TUBE_COLUMNS), "ImageId")
    if not rows:
        raise UserError(f"{path} has no lines after its header {','.join(TUBE_COLUMNS)}; give the tube labels")
    return {key: bool(row.integer("tube", (0, 1))) for key, row in rows.items()}


def _from_json(path: Path, data: bytes) -> Any:
    try:
        return parse_json(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); give one object {{image id: 0 or 1}}") from None


def _text(path: Path, key: Any) -> str:
    if not isinstance(key, str):
        raise UserError(f"{path}: an image id is {type(key).__name__}, not a string; give {{image id: 0 or 1}}")
    return key.strip()


def _flag(path: Path, key: str, value: Any) -> bool:
    if not isinstance(value, bool | int | float) or value not in (0, 1):
        raise UserError(f"{path}: image {key[:80]!r} has a label that is not 0 or 1; correct the file")
    return bool(value)


class _Dtype:
    """Stand-in for numpy.dtype in a pickle: type code and byte order."""

    def __init__(self, code: str) -> None:
        if not SCALAR.fullmatch(code):
            raise pickle.UnpicklingError("a NumPy type that is not a number or string")
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = {"<": "<", ">": ">"}.get(state[1], "=")


class _Restricted(pickle.Unpickler):
    """An Unpickler that knows three names, and returns stand-ins even for those.

    The stand-ins are bound methods: a pickle can set attributes of what it gets, and a bound method has none to set.
    """

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a name. Raises UnpicklingError for any other name."""
        known = {
            ("numpy", "dtype"): self._dtype,
            ("numpy.core.multiarray", "scalar"): self._scalar,
            ("numpy._core.multiarray", "scalar"): self._scalar,
            ("_codecs", "encode"): self._encode,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it asks for {module[:40]!a}, {name[:40]!a}")
        return known[module, name]

    def _dtype(self, code: str, *_: bool) -> _Dtype:
        return _Dtype(code)

    def _scalar(self, dtype: _Dtype, data: bytes | str) -> bool | int | float | str:
        """The value as a Python scalar. Pickles of Python 2 hold the bytes as Latin-1 text."""
        if not isinstance(dtype, _Dtype):
            raise pickle.UnpicklingError("a NumPy scalar without a type")
        raw = data.encode("latin1") if isinstance(data, str) else data
        value: bool | int | float | str = np.frombuffer(raw, dtype.order + dtype.code)[0].item()
        return value

    def _encode(self, text: str, encoding: str) -> bytes:
        """The bytes: protocol 2 pickles them as Latin-1 text."""
        if encoding != "latin1":
            raise pickle.UnpicklingError("bytes in an unexpected encoding")
        return text.encode("latin1")


def _from_pickle(path: Path, data: bytes) -> dict[str, bool]:
    """Unpickled in a child process: a small pickle can ask for any amount of time and memory."""

    def labels() -> np.ndarray:
        _check_memo(data)
        table = _Restricted(io.BytesIO(data), encoding="latin1").load()
        return np.frombuffer(json.dumps(_checked(path, table)).encode(), np.uint8)

    try:
        found: dict[str, bool] = json.loads(in_child(labels, SECONDS, MEMORY).tobytes())
        return found
    except IsolatedError as error:
        if error.kind == UserError.__name__:
            raise UserError(str(error)) from None
        if error.kind == pickle.UnpicklingError.__name__:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{path}: refused to unpickle ({reason}); it must be a plain dict {{image id: 0 or 1}}: give that, "
                f"or a .json, or a .csv with the columns {', '.join(TUBE_COLUMNS)}"
            ) from None
        raise UserError(f"{path} is not a pickle, or a broken one ({error.kind}); restore the file") from None


def _check_memo(data: bytes) -> None:
    """Refuse a memo index larger than the file: the unpickler would allocate up to 64 GB for it."""
    for operation, argument, _ in pickletools.genops(data):
        if "PUT" in operation.name and isinstance(argument, int) and argument > len(data):
            raise pickle.UnpicklingError("a memo index out of bounds")
