"""Read files of bounded size, and nothing but regular files: a pipe or a device could be read without end."""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

LONGEST_NAME, LONGEST_PATH = 255, 4000
LARGEST_TEXT = 1 << 28
"""Bytes of an index file, a table or a list; the largest published ones have 40 million."""


def path_problem(text: str) -> str:
    """Why a text cannot be the path of a file on any common file system; "" if it can."""
    if "\0" in text:
        return "has a null character"
    path = text.encode(errors="surrogatepass")
    if len(path) > LONGEST_PATH or max(map(len, path.split(b"/"))) > LONGEST_NAME:
        return f"is too long for a path (at most {LONGEST_NAME} bytes between slashes, {LONGEST_PATH} in all)"
    return ""


def check_regular(path: Path | str, largest: int | None = None) -> None:
    """Raise OSError unless the path is, or links to, a regular file of at most `largest` bytes."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    if largest is not None and found.st_size > largest:
        raise OSError(errno.EFBIG, f"larger than {largest} bytes", str(path))


def read_file(path: Path | str, largest: int = LARGEST_TEXT) -> bytes:
    """All bytes of a regular file. Raises OSError for anything else, and for more than `largest` bytes."""
    check_regular(path, largest)
    content = Path(path).read_bytes()
    if len(content) > largest:  # it has grown
        raise OSError(errno.EFBIG, f"larger than {largest} bytes", str(path))
    return content


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError as json.loads does, and for a key that appears twice in an object."""
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:80]!r} appears twice")
    return found
