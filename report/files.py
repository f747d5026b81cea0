"""Writing a file so that a reader sees the old one or the new one, never half of it."""

import contextlib
import io
import os
from pathlib import Path

from PIL import Image

from common.errors import UserError


def write_atomic(path: Path, content: str | bytes) -> Path:
    """Write UTF-8 text or bytes to a temporary file beside `path` and rename it; makes the folder.

    Raises UserError naming the file where that is impossible.
    """
    data = content.encode() if isinstance(content, str) else content
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


def png_bytes(picture: Image.Image) -> bytes:
    """The picture as a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
