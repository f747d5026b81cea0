"""TIFF and PNG files whose values need their tags to be understood, written byte by byte."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.formats.images import UnreadableImageError, read_grey, read_image, read_mask, read_rgba

BLACK_IS_ZERO, WHITE_IS_ZERO = 1, 0
UNSIGNED, SIGNED, FLOAT = 1, 2, 3


def tiff(path: Path, values: np.ndarray, meaning: int = BLACK_IS_ZERO, sample: int = UNSIGNED, bits: int = 0) -> Path:
    """Grey values [H, W] as they are, or two of 12 bits in three bytes."""
    bits, (height, width), data = bits or 8 * values.itemsize, values.shape, values.tobytes()
    if bits == 12:
        first, second = values.reshape(-1, 2).astype(int).T
        data = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1).astype(np.uint8).tobytes()
    tags = [
        (256, width), (257, height), (258, bits), (259, 1), (262, meaning), (273, 8), (277, 1), (278, height),
        (279, len(data)), (339, sample),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    start = struct.pack("<4sI", b"II*\0", 8 + len(data))
    path.write_bytes(start + data + struct.pack("<H", len(tags)) + entries + b"\0" * 4)
    return path


def png(path: Path, width: int, bits: int, kind: int, row: bytes, transparent: bytes) -> Path:
    """One row of pixels; kind 0 is grey, 2 is RGB."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, 1, bits, kind, 0, 0, 0)
    chunks = (b"IHDR", header), (b"tRNS", transparent), (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks))
    return path


def test_twelve_bits_use_the_whole_range(tmp_path: Path) -> None:
    values = np.arange(4096).reshape(64, 64)
    path = tiff(tmp_path / "a.tif", values, bits=12)
    assert np.array_equal(read_grey(path), np.round(values / 4095 * 255))
    assert np.array_equal(read_image(path)[..., 1], np.round(values / 4095 * 255))
    assert np.array_equal(read_mask(path), values > 0)


@pytest.mark.parametrize(("dtype", "sample"), [(np.uint8, UNSIGNED), (np.uint16, UNSIGNED), (np.float32, FLOAT)])
def test_white_may_be_stored_as_zero(tmp_path: Path, dtype: type, sample: int) -> None:
    stored = np.array([[0, 51, 255]]) / 255
    values = (stored if sample == FLOAT else stored * np.iinfo(dtype).max).astype(dtype)
    path = tiff(tmp_path / "a.tif", values, WHITE_IS_ZERO, sample)
    assert read_grey(path).tolist() == [[255, 204, 0]] and read_rgba(path)[0, :, 2].tolist() == [255, 204, 0]
    assert read_mask(path).tolist() == [[True, True, False]]


def test_large_values_without_a_sign_are_above_zero(tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", np.array([[0, 1, 2**31, 2**32 - 1]], np.uint32))
    assert read_mask(path).tolist() == [[False, True, True, True]]
    with pytest.raises(UnreadableImageError, match=r"its values run from 0 to 2147483647, outside 0\.\.65535"):
        read_image(path)


@pytest.mark.parametrize("read", [read_image, read_grey, read_mask])
def test_signed_values(tmp_path: Path, read: Callable[[Path], np.ndarray]) -> None:
    path = tiff(tmp_path / "a.tif", np.array([[-1, 0, 1]], np.int8), sample=SIGNED)
    with pytest.raises(UnreadableImageError, match="its 8-bit values have a sign"):
        read(path)
    path = tiff(tmp_path / "a.tif", np.array([[-1, 0, 300]], np.int16), sample=SIGNED)
    if read is read_mask:
        assert read(path).tolist() == [[False, False, True]]
    else:
        with pytest.raises(UnreadableImageError, match="its values run from -1 to 300"):
            read(path)


def test_a_mask_without_a_number_is_refused(tmp_path: Path) -> None:
    values = np.array([[0, np.nan]], np.float32)
    np.save(tmp_path / "a.npy", values)
    for path in (tmp_path / "a.npy", tiff(tmp_path / "a.tif", values, sample=FLOAT)):
        with pytest.raises(UnreadableImageError, match="not a number"):
            read_mask(path)


def test_colours_that_cannot_be_converted(tmp_path: Path) -> None:
    Image.new("LAB", (4, 4)).save(tmp_path / "a.tif")
    for read in (read_mask, read_grey):
        with pytest.raises(UnreadableImageError, match=r"its colours \(LAB\) cannot be converted"):
            read(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("bits", "row", "transparent", "shown"),
    [
        (16, struct.pack(">3H", 0, 256, 65535), 0, [255, 1, 255]),
        (16, struct.pack(">3H", 257, 256, 0), 256, [1, 255, 0]),
        (8, bytes([9, 8, 7]), 8, [9, 255, 7]),
        (4, bytes([0x5A, 0x10]), 5, [255, 170, 17]),
        (2, bytes([0b01_00_10_00]), 1, [255, 0, 170]),
        (1, bytes([0b010_00000]), 0, [255, 255, 255]),
    ],
)
def test_a_transparent_grey_value_is_white(
    tmp_path: Path, bits: int, row: bytes, transparent: int, shown: list[int]
) -> None:
    path = png(tmp_path / "a.png", 3, bits, 0, row, struct.pack(">H", transparent))
    assert read_image(path).tolist() == [[[value] * 3 for value in shown]]


def test_a_transparent_colour_of_sixteen_bits_is_refused(tmp_path: Path) -> None:
    """Pillow keeps eight bits of each, so it would hide other colours too."""
    row, transparent = struct.pack(">6H", 256, 0, 0, 257, 0, 0), struct.pack(">3H", 256, 0, 0)
    with pytest.raises(UnreadableImageError, match="one of its 16-bit colours is transparent"):
        read_image(png(tmp_path / "a.png", 2, 16, 2, row, transparent))
    row, transparent = bytes([1, 0, 0, 2, 0, 0]), struct.pack(">3H", 1, 0, 0)
    assert read_image(png(tmp_path / "a.png", 2, 8, 2, row, transparent))[0, :, 0].tolist() == [255, 2]
