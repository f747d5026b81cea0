"""Images made of very many pieces, each of which costs Pillow time in Python, are refused; so is no ordinary one."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.formats import image_source
from datasets.formats.images import read_image
from tests.datasets.radiographs import encoded, smooth
from tests.security.test_sizes import refusal

MANY = 50_000
GREY = smooth(0)


def chunks_of_png() -> bytes:
    data = encoded(GREY, "PNG")
    empty = struct.pack(">I", 0) + b"abCd" + struct.pack(">I", zlib.crc32(b"abCd"))
    return data[:33] + empty * MANY + data[33:]


def segments_of_jpeg() -> bytes:
    data = encoded(GREY, "JPEG")
    return data[:2] + b"\xff\xfe\0\2" * MANY + data[2:]


def fill_of_jpeg() -> bytes:
    """Bytes between two segments, which Pillow skips one by one."""
    data = encoded(GREY, "JPEG")
    return data[:2] + b"\xff" * MANY + data[2:]


def scans_of_jpeg() -> bytes:
    data = encoded(GREY, "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    return data[:start] + data[start:-2] * 200 + data[-2:]


def comment_of_gif() -> bytes:
    data = encoded(GREY, "GIF")
    at = data.index(b",", 13 + 3 * 256)
    return data[:at] + b"!\xfe" + b"\1a" * MANY + b"\0" + data[at:]


def comment_of_pgm() -> bytes:
    return b"P5 #" + b"a" * MANY + b"\n48 48 255\n" + GREY.tobytes()


def comments_among_numbers() -> bytes:
    return b"P2 48 48 255\n" + b"#\n" * MANY + b" ".join(b"%d" % value for value in GREY.ravel())


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (chunks_of_png, "too many small pieces"),
        (segments_of_jpeg, "too many small pieces"),
        (fill_of_jpeg, "too many small pieces"),
        (scans_of_jpeg, "more than 100 scans"),
        (comment_of_gif, "too many small pieces"),
        (comment_of_pgm, "too many small pieces"),
        (comments_among_numbers, "more than 1000 comments"),
    ],
)
def test_an_image_of_too_many_pieces(
    tmp_path: Path, make: Callable[[], bytes], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "image"
    path.write_bytes(make())
    assert reason in refusal(read_image, path, 1 << 26)
    # Without the bounds Pillow reads it: they are what refuses it.
    for name in ("MOST_READS", "MOST_SCANS", "MOST_COMMENTS"):
        monkeypatch.setattr(image_source, name, 1 << 30)
    assert read_image(path).shape == (*GREY.shape, 3)


def test_ordinary_images_have_few_pieces(tmp_path: Path) -> None:
    """Noise, which is not compressed: 3 MB of PNG; a TIFF with a strip for each row; a BMP of run lengths."""
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), np.uint8)
    for name, options in (("a.png", {}), ("a.tif", {"tiffinfo": {278: 1}}), ("a.webp", {"lossless": True})):
        Image.fromarray(noise).save(tmp_path / name, **options)
        assert np.array_equal(read_image(tmp_path / name), noise)
    runs = (b"".join(bytes([1, value, 1, 255 - value]) for value in range(128)) + b"\0\0") * 300
    palette = b"".join(bytes([i, i, i, 0]) for i in range(256))
    header = struct.pack("<IiiHHIIiiII", 40, 256, 300, 1, 8, 1, len(runs), 0, 0, 256, 0)
    (tmp_path / "a.bmp").write_bytes(
        struct.pack("<2sIII", b"BM", 54 + 1024 + len(runs), 0, 54 + 1024) + header + palette + runs
    )
    row = [value for pair in range(128) for value in (pair, 255 - pair)]
    assert read_image(tmp_path / "a.bmp")[..., 0].tolist() == [row] * 300
