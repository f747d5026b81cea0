"""What a kind of file is made of."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

File = tuple[str, bytes]
"""Ending and content."""


@dataclass(frozen=True)
class Kind:
    """Files of a kind, and the reader."""

    files: Callable[[], list[File]]
    read: Callable[[Path], None]
    """Raises AssertionError where what was read cannot be."""


def content(write: Callable[[Path], Any], suffix: str) -> File:
    """What `write` writes to the path it is given."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"file{suffix}"
        write(path)
        return suffix, path.read_bytes()
