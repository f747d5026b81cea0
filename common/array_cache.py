"""Arrays that are computed once and kept in a folder, for all processes and jobs that share it."""

import contextlib
import os
from pathlib import Path
from uuid import uuid4

import numpy as np

from common.errors import UserError
from common.files import check_regular

RECOUNT = 200
"""Files written between two looks at the folder's size, to which other processes may have added."""


class ArrayCache:
    """A folder with one .npy file per key, which appears in one step: processes may write the same one at once."""

    def __init__(self, setting: str, folder: Path, max_bytes: float) -> None:
        """When the files in `folder` reach `max_bytes`, no more are written. `setting`: its config key, for messages.

        Raises UserError if the folder cannot be made.
        """
        self.setting, self.folder, self.max_bytes = setting, folder, max_bytes
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{setting}: cannot create {folder} ({error.strerror})") from None
        self._bytes, self._written = 0.0, 0

    def read(self, key: str) -> np.ndarray | None:
        """The array of a key in hexadecimal digits; None if its file is missing or damaged."""
        with contextlib.suppress(OSError, ValueError, EOFError):
            check_regular(self._file(key))
            stored: np.ndarray = np.load(self._file(key), allow_pickle=False)
            return stored
        return None

    def write(self, key: str, values: np.ndarray) -> None:
        """Keep an array, if there is room. A folder that takes no files costs one line."""
        file = self._file(key)
        temporary = file.with_name(f".{uuid4().hex}.tmp")  # process ids of several machines may be equal
        try:
            if self._written % RECOUNT == 0:
                self._bytes = sum(entry.stat().st_size for entry in self.folder.rglob("*.npy"))
            self._written += 1
            if self._bytes + values.nbytes > self.max_bytes:
                return
            self._bytes += values.nbytes
            file.parent.mkdir(exist_ok=True)
            with temporary.open("wb") as stream:
                np.save(stream, values)
            os.replace(temporary, file)
        except OSError as error:  # all works without; the cache is only faster
            with contextlib.suppress(OSError):
                temporary.unlink()
            self.max_bytes = 0.0
            print(f"{self.setting}: {self.folder} takes no more files ({error.strerror}); the run goes on without")

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.npy"
