"""Images as the fixed first step of a transform leaves them, kept on disk by the content of their files.

`data.image_cache`: decoding and resizing are done once for all epochs, runs, processes and jobs. The key of an entry is
a hash of the file's bytes and of everything else that its pixels depend on, so a changed file is another entry.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import features

from common.array_cache import ArrayCache
from common.files import read_file

VERSION = "1"
"""Raise it when a reader or `datasets.geometry` gives other pixels than before."""
CODECS = ("jpg", "libjpeg_turbo", "jpg_2000", "zlib", "libtiff", "webp", "avif")
"""Libraries of Pillow that decide what pixels a file has."""
LARGEST = 1 << 30
"""Bytes of an image file."""
Decode = Callable[[], np.ndarray]


@dataclass(frozen=True)
class ImageCache:
    """The stored images of one first step."""

    files: ArrayCache
    step: str
    """The step and its settings."""

    def key(self, path: Path, reader: str) -> str | None:
        """Of the file as it is now, read by `reader`; None if it cannot be read."""
        try:
            content = read_file(path, LARGEST)
        except OSError:
            return None
        return hashlib.blake2b(content, key=_digest(self.step, reader), digest_size=20).hexdigest()


_cache: ContextVar[ImageCache | None] = ContextVar("image_cache", default=None)


@contextmanager
def images_from(images: ImageCache | None) -> Iterator[None]:
    """Inside, `stored_image` uses the cache."""
    token = _cache.set(images)
    try:
        yield
    finally:
        _cache.reset(token)


def stored_image(path: Path, reader: str, decode: Decode) -> np.ndarray:
    """`decode()`, [H, W, 3] uint8; inside `images_from` a StoredImage, which has the shape and becomes the array.

    `reader`: names the function that decodes, with its settings.
    """
    images = _cache.get()
    key = None if images is None else images.key(path, reader)
    if images is None or key is None:
        return decode()
    return cast(np.ndarray, StoredImage(images, path, reader, key, decode))


class StoredImage:
    """An image of a record: its `shape`, and its pixels for `np.asarray`.

    It is decoded only if its first step is not stored or something else asks for its pixels.
    """

    def __init__(self, images: ImageCache, path: Path, reader: str, key: str, decode: Decode) -> None:
        self._images, self._path, self._reader, self._key, self._decode = images, path, reader, key, cache(decode)
        entry = images.files.read(key)
        self.step: np.ndarray | None = None if entry is None else entry["pixels"]
        """What the first step makes of the image; None if it is not stored."""
        self.shape: tuple[int, ...] = self._decode().shape if entry is None else (*map(int, entry["size"]), 3)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self._decode(), dtype)

    def keep(self, pixels: np.ndarray) -> None:
        """Store what the first step makes of the image, unless the file has changed since it was read."""
        files = self._images.files
        if files.full or self._images.key(self._path, self._reader) != self._key:
            return
        entry = np.empty((), [("size", "<u4", (2,)), ("pixels", "u1", pixels.shape)])
        entry["size"], entry["pixels"] = self.shape[:2], pixels
        files.write(self._key, entry)


def blank(shape: tuple[int, ...]) -> np.ndarray:
    """A black image of this shape that takes no memory, for the geometry of annotations."""
    return np.broadcast_to(np.uint8(0), shape)


@cache
def _digest(step: str, reader: str) -> bytes:
    """32 bytes that stand for all that pixels depend on besides the file."""
    what = (VERSION, step, reader, version("pillow"), version("pydicom"), *map(features.version, CODECS))
    return hashlib.blake2b(repr(what).encode(), digest_size=32).digest()
