"""Atomic writes: a file is complete or absent, even if the process is killed or the power fails."""

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from common.errors import UserError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside `path` to write; when the context ends it is flushed to disk and renamed to `path`.

    After an exception `path` is unchanged and the temporary file is removed. Raises OSError if flushing fails.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # left by a killed process; it may be a hard link to a file that is kept
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        with contextlib.suppress(OSError):  # some network file systems cannot; the file is renamed anyway
            _flush(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


WRITE_ERRORS = (OSError, SafetensorError, RuntimeError)
"""What a full disk raises: safetensors and torch.save have exceptions of their own."""


def reason_of(error: Exception) -> str:
    """Why a file could not be written, on one line."""
    return getattr(error, "strerror", None) or " ".join(str(error).split())[:200]


def link_or_copy(path: Path, name: Path) -> None:
    """Make `name` another name of the file `path`, replacing `name`; a copy where the file system has no hard links.

    Only for files that are replaced as a whole: writing into one would change both. Raises UserError.
    """
    try:
        with replacing(name) as temporary:
            try:
                os.link(path, temporary)
            except OSError:
                shutil.copyfile(path, temporary)
    except OSError as error:
        raise UserError(f"cannot keep {path} as {name.name}: {error.strerror or error}; both are unchanged") from None


LEFTOVERS = (".*.*.tmp", ".tmp??????")
"""Names of temporary files: ours, and those of the safetensors library."""
DAY = 86400.0


def remove_leftovers(*folders: Path, age: float = 0) -> None:
    """Remove temporary files of processes that were killed while writing.

    `age`: seconds since a file was last written to, for folders that other processes may be writing to.
    """
    for folder in folders:
        for pattern in LEFTOVERS:
            for temporary in folder.glob(pattern):
                with contextlib.suppress(OSError):  # renamed meanwhile, or on a read-only disk
                    if not age or time.time() - temporary.lstat().st_mtime > age:
                        temporary.unlink()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
