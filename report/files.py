"""Atomic file writing: a reader sees the old file or the new one, never a partial one."""

import contextlib
import io
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from common.errors import UserError, printable


def write_atomic(path: Path, content: str | bytes) -> Path:
    """Write UTF-8 text or bytes to a temporary file next to `path` and rename it; creates the folder.

    Control characters in a text, other than line ends and tabs, are escaped: names of files and classes may have any.
    Raises UserError that names the file if it cannot be written.
    """
    data = _printable(content).encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return path


def _printable(text: str) -> str:
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


def check_folder(path: Path, flag: str) -> Path:
    """The path, if it is a writable folder or one can be created there; creates nothing.

    Raises UserError that names `flag` otherwise.
    """
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        problem = "read-only" if existing.is_dir() else "a file"
        raise UserError(f"{flag}: cannot write to {path}: {existing} is {problem}")
    return path


def json_text(content: Any) -> str:
    """Strict JSON: nan and infinity become null, values that JSON cannot represent become strings."""
    return json.dumps(_plain(content), indent=2, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


LAYOUT = "Layout"
"""Text chunk of the PNG files of this package: where things are on the image, as ASCII JSON, for report.html."""


def png_bytes(image: Image.Image, texts: Mapping[str, str] | None = None) -> bytes:
    """The image as a PNG file; `texts`: its text chunks, such as "Software", which says what made it."""
    buffer, info = io.BytesIO(), PngInfo()
    for key, text in (texts or {}).items():
        info.add_text(key, text)
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def png_layout(content: bytes) -> dict[str, Any] | None:
    """The layout that a PNG file of this package carries, without decoding the image; None for any other PNG."""
    place, start = 8, f"{LAYOUT}\0".encode()
    while content[place + 4 : place + 8] not in (b"IDAT", b""):
        length = int.from_bytes(content[place : place + 4])
        body = content[place + 8 : place + 8 + length]
        if content[place + 4 : place + 8] == b"tEXt" and body.startswith(start):
            layout: dict[str, Any] = json.loads(body.removeprefix(start))
            return layout
        place += 12 + length
    return None
