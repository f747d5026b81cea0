"""Arrays that are computed once and kept in a folder, for all processes and jobs that share it."""

import contextlib
import io
import os
from pathlib import Path
from uuid import uuid4
from zlib import crc32

import numpy as np

from common.files import read_file

CHECKSUM_BYTES = 4
LEAST = 200
"""Files that a process writes before it lists the folder again, whatever the others do."""


class ArrayCache:
    """A folder with one file per key, which appears in one step: processes may write the same one at once.

    A file is a .npy file, followed by its CRC-32: a power cut can leave zeros in it. A folder that takes no files, or
    cannot be made, as on another machine, costs one line: all works without, only slower.
    """

    def __init__(self, setting: str, folder: Path, max_bytes: float) -> None:
        """When the files in `folder` reach `max_bytes`, no more are written. `setting`: its config key."""
        self.setting, self.folder, self.max_bytes = setting, folder, max_bytes
        self.full = False
        """The folder takes no more files."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._stop(error)
        self._size = self._own = self._left = 0.0
        """Bytes in the folder when it was listed; of this process since then; that it may write before the next time"""

    def read(self, key: str) -> np.ndarray | None:
        """The array of a key in hexadecimal digits; None if its file is missing or damaged."""
        with contextlib.suppress(OSError, ValueError, EOFError):
            content = memoryview(read_file(self._file(key)))
            values, checksum = content[:-CHECKSUM_BYTES], content[-CHECKSUM_BYTES:]
            if _checksum(values) == checksum:
                stored: np.ndarray = np.load(io.BytesIO(values), allow_pickle=False)
                return stored
        return None

    def write(self, key: str, values: np.ndarray) -> None:
        """Keep an array, if there is room."""
        if self.full:
            return
        buffer = io.BytesIO()
        np.save(buffer, values)
        buffer.write(_checksum(buffer.getbuffer()))
        file = self._file(key)
        temporary = file.with_name(f".{uuid4().hex}.tmp")  # process ids of several machines may be equal
        try:
            if not self._take(len(buffer.getbuffer())):
                return
            file.parent.mkdir(exist_ok=True)
            temporary.write_bytes(buffer.getbuffer())
            os.replace(temporary, file)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            self._stop(error)

    def _stop(self, error: OSError) -> None:
        self.full = True
        print(f"{self.setting}: {self.folder} takes no more files ({error.strerror or error}); the run goes on without")

    def _take(self, count: int) -> bool:
        """Whether there is room for `count` more bytes, which are then counted."""
        if count > self._left:
            self._look(LEAST * count)
        self.full = count > self._left
        self._left -= count
        self._own += count
        return not self.full

    def _look(self, least: float) -> None:
        """List the folder, to which other processes add too.

        Until the next time this process may write so much that all of them, at the pace of each since the last time,
        fill half of what is free; but at least `least`. So a folder of any size is listed a few times only.
        """
        before, self._size = self._size, float(sum(each.stat().st_size for each in self.folder.rglob("*.npy")))
        free = self.max_bytes - self._size
        fraction = self._own / max(self._own, self._size - before, 1.0)  # of all that was written
        self._left, self._own = min(free, max(least, fraction * free / 2)), 0.0

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.npy"


def _checksum(content: memoryview) -> bytes:
    return crc32(content).to_bytes(CHECKSUM_BYTES, "little")
