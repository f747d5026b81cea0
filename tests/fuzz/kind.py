"""A kind of file: examples and their reader."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

File = tuple[str, bytes]
"""Suffix and content."""


@dataclass(frozen=True)
class Kind:
    """Example files of a kind, and the reader."""

    files: Callable[[], list[File]]
    read: Callable[[Path], None]
    """Raises AssertionError if the result is invalid."""


def content(write: Callable[[Path], Any], suffix: str) -> File:
    """The file that `write` creates at the path it is given."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"file{suffix}"
        write(path)
        return suffix, path.read_bytes()
