"""Writing a file so that a reader sees the old one or the new one, never half of it."""

import contextlib
import io
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from common.errors import UserError


def write_atomic(path: Path, content: str | bytes) -> Path:
    """Write UTF-8 text or bytes to a temporary file beside `path` and rename it; makes the folder.

    Raises UserError naming the file where that is impossible.
    """
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
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


def check_folder(path: Path, flag: str) -> Path:
    """The path, if a folder is or can be made there. Raises UserError naming the flag; makes nothing."""
    there = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(f"{flag}: cannot write to {path}: {there} is {'read-only' if there.is_dir() else 'a file'}")
    return path


def json_text(content: Any) -> str:
    """JSON that every reader takes: nan and infinity become null, what JSON has no word for becomes text."""
    return json.dumps(_plain(content), indent=2, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def png_bytes(image: Image.Image) -> bytes:
    """The image as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
