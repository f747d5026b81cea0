"""Arrays that grow batch by batch in an HDF5 file, which is complete or absent."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import ClassVar

import h5py
import numpy as np

from common.errors import UserError

CHUNK = 2**18
"""Approximate values per chunk. It must fit into HDF5's cache, or each appended batch compresses the chunk again."""


class HdfWriter:
    """Writes to a temporary file, which is renamed to `path` if the context ends without an error.

    Raises UserError naming `flag` and the file where it cannot be written.
    """

    flag: ClassVar[str]
    """The command-line flag that names the file."""

    def __init__(self, path: Path) -> None:
        self.path, self.temporary = path, path.with_name(f".{path.name}.{os.getpid()}.tmp")

    def __enter__(self) -> "HdfWriter":
        if self.path.is_dir():
            raise UserError(f"{self.flag}: {self.path} is a folder; name a file")
        with self._as_user_error():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = h5py.File(self.temporary, "w")
        return self

    def append(self, name: str, rows: np.ndarray) -> None:
        """Add rows [n, ...] to the data set `name`, compressed; its first rows decide on shape and dtype."""
        with self._as_user_error():
            if name not in self.file:
                shape = rows.shape[1:]
                chunk = min(1024, 1 + CHUNK // int(np.prod(shape)))
                self.file.create_dataset(
                    name, shape=(0, *shape), dtype=rows.dtype, maxshape=(None, *shape), chunks=(chunk, *shape),
                    compression="gzip", shuffle=True,
                )  # fmt: skip
            dataset = self.file[name]
            dataset.resize(len(dataset) + len(rows), axis=0)
            dataset[-len(rows) :] = rows

    def complete(self) -> None:
        """Write what is known only at the end; called before the file is renamed."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with self._as_user_error():
                    self.complete()
                    self.file.close()
                    self.temporary.replace(self.path)
        finally:
            with contextlib.suppress(OSError, ValueError, RuntimeError):
                self.file.close()
            self.temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _as_user_error(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:  # HDF5 reports a full disk as either
            raise UserError(f"{self.flag}: cannot write {self.path} ({line_of(error)})") from None


def line_of(error: Exception) -> str:
    """An error of HDF5 on one line."""
    return " ".join(str(error).split())[:200]
