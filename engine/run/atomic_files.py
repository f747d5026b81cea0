"""Files that are whole or not there at all, whenever the process is killed or the power fails."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from common.errors import UserError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` to write in this context; at its end it is flushed to the disk and renamed.

    Left by an exception, `path` is as it was and the temporary file gone. Raises OSError where flushing fails.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # of a killed process; it may be a second name of a file that is kept
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        with contextlib.suppress(OSError):  # some network file systems cannot; the renaming stands all the same
            _flush(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def keep_as(path: Path, name: Path) -> None:
    """The file under a second name too, over what stood there; at no cost where the file system has hard links.

    For files that are only ever replaced, never written into: both names would change. Raises UserError.
    """
    try:
        with replacing(name) as temporary:
            try:
                os.link(path, temporary)
            except OSError:
                shutil.copyfile(path, temporary)
    except OSError as error:
        raise UserError(f"cannot keep {path} as {name.name}: {error.strerror or error}; both are untouched") from None


def remove_leftovers(*folders: Path) -> None:
    """Remove the temporary files of processes that were killed while they wrote."""
    for folder in folders:
        for pattern in (".*.*.tmp", ".tmp??????"):  # ours, and those that safetensors writes first
            for temporary in folder.glob(pattern):
                temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
