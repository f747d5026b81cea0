"""Files that claim a huge size give one line before that memory is allocated."""

import io
import os
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGBaseline8Bit
from scipy.io import savemat

from common.errors import UserError
from datasets.formats.dicom import read_dicom
from datasets.formats.images import read_image, read_mask
from datasets.formats.matlab import read_mat
from engine.run.command_line import parse_config
from explain.__main__ import main as explain
from tests.datasets.radiographs import encoded, smooth, write_dicom

SIDE = 60000
MEMORY = 1 << 24
"""Bytes that a refusal may allocate; the images claim 3.6e9 pixels."""


def refusal(read: Callable[[Path], Any], path: Path, memory: int = MEMORY) -> str:
    """The error message; the most memory taken is below `memory` bytes."""
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as caught:
            read(path)
        assert tracemalloc.get_traced_memory()[1] < memory
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


def whole(kind: str) -> bytearray:
    buffer = io.BytesIO()
    Image.fromarray(smooth(0)).save(buffer, kind)
    return bytearray(buffer.getvalue())


def png() -> bytes:
    data = whole("PNG")
    data[16:24] = struct.pack(">II", SIDE, SIDE)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def jpeg() -> bytes:
    data = whole("JPEG")
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", SIDE, SIDE)
    return bytes(data)


def tiff() -> bytes:
    data = whole("TIFF")
    for tag in (256, 257):  # width and length, of type long
        at = next(data.index(entry) for kind in (4, 3) if (entry := struct.pack("<HHI", tag, kind, 1)) in data)
        data[at : at + 12] = struct.pack("<HHII", tag, 4, 1, SIDE)
    return bytes(data)


def gif() -> bytes:
    data = whole("GIF")
    data[6:10] = struct.pack("<HH", SIDE, SIDE)
    return bytes(data)


def bmp() -> bytes:
    data = whole("BMP")
    data[18:26] = struct.pack("<ii", SIDE, SIDE)
    return bytes(data)


def ppm() -> bytes:
    return b"P5 60000 60000 255\n" + bytes(10)


def jpeg_2000() -> bytes:
    data = whole("JPEG2000")
    data[data.index(b"ihdr") + 4 : data.index(b"ihdr") + 12] = struct.pack(">II", SIDE, SIDE)
    at = data.index(b"\xff\x51")
    data[at + 6 : at + 14] = struct.pack(">II", SIDE, SIDE)
    return bytes(data)


@pytest.mark.parametrize("make", [png, jpeg, tiff, gif, bmp, ppm, jpeg_2000])
@pytest.mark.parametrize("read", [read_image, read_mask])
def test_a_image_that_claims_to_be_huge(make: Callable[[], bytes], read: Callable[[Path], Any], tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(make())
    assert "over Pillow's limit" in refusal(read, path)


def test_a_image_just_over_the_limit(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """Pillow itself only warns up to twice the limit."""
    path = tmp_path / "a.pgm"
    path.write_bytes(b"P5 10000 10000 255\n" + bytes(10))
    assert "10000 x 10000 pixels is over Pillow's limit" in refusal(read_image, path)
    assert len(recwarn) == 0


def test_a_image_for_python_m_explain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_bytes(png())
    with pytest.raises(SystemExit):
        explain([str(tmp_path / "a.png"), "--model=timm/vit_nano_patch8", "--weights=none", "--size", "32", "32"])
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("shape", [(SIDE, SIDE), (10**12, 10**12), (-5, 4)])
def test_an_array_that_claims_to_be_huge(shape: tuple[int, int], tmp_path: Path) -> None:
    path, header = tmp_path / "mask.npy", io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": shape})
    path.write_bytes(header.getvalue() + bytes(64))
    refusal(read_mask, path)


def test_an_array_of_a_sparse_file(tmp_path: Path) -> None:
    """A sparse file is as large as its header claims."""
    path, header = tmp_path / "mask.npy", io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|b1", "fortran_order": False, "shape": (SIDE, SIDE)})
    path.write_bytes(header.getvalue())
    os.truncate(path, len(header.getvalue()) + SIDE * SIDE)
    assert "60000 x 60000 pixels is over Pillow's limit" in refusal(read_mask, path)


def test_a_radiograph_that_claims_to_be_huge(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", smooth(0), Rows=SIDE, Columns=SIDE)
    assert "over Pillow's limit" in refusal(read_dicom, path)
    path = write_dicom(tmp_path / "b.dcm", smooth(0), frame=jpeg(), syntax=JPEGBaseline8Bit)
    assert "truncated or cannot be decoded" in refusal(read_dicom, path)


def test_a_radiograph_whose_rows_are_a_text(tmp_path: Path) -> None:
    """A string times a number is a longer string."""
    path = write_dicom(tmp_path / "a.dcm", smooth(0))
    data = path.read_bytes()
    rows = struct.pack("<HH2sHH", 0x28, 0x10, b"US", 2, 48)
    path.write_bytes(data.replace(rows, struct.pack("<HH2s2xI", 0x28, 0x10, b"UT", 100000) + b"9" * 100000))
    assert "the tags that describe its pixels are missing or wrong" in refusal(read_dicom, path)


def test_a_radiograph_that_expands(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", np.zeros((4000, 4000), np.uint8), syntax=DeflatedExplicitVRLittleEndian)
    assert path.stat().st_size < 100000
    assert "deflated as a whole" in refusal(read_dicom, path)


def test_a_matlab_array_that_claims_to_be_huge(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    savemat(path, {"X": np.zeros((3, 5))})
    read_mat(path, "X")
    path.write_bytes(path.read_bytes().replace(struct.pack("<ii", 3, 5), struct.pack("<ii", SIDE, SIDE)))
    assert "array X has more than 536870912 elements" in refusal(lambda path: read_mat(path, "X"), path)


def test_yaml_that_expands(tmp_path: Path) -> None:
    names = "abcdefghijkl"
    lines = [
        f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]" for before, name in zip(names, names[1:], strict=False)
    ]
    path = tmp_path / "c.yaml"
    path.write_text("\n".join(["a: &a [1, 2, 3]", *lines]))
    assert "aliases (*name) are not supported" in refusal(lambda path: parse_config([f"--config={path}"]), path)


@pytest.mark.parametrize("text", ["out: " + "[" * 60000 + "]" * 60000, "out: " + "{a: " * 25000 + "}" * 25000])
def test_yaml_without_a_bottom(text: str, tmp_path: Path) -> None:
    """The C parser overflows the stack."""
    path = tmp_path / "c.yaml"
    path.write_text(text)
    assert "more than 50 levels deep" in refusal(lambda path: parse_config([f"--config={path}"]), path)


@pytest.mark.parametrize("read", [read_image, read_mask, read_dicom])
def test_a_pipe_is_not_waited_for(read: Callable[[Path], Any], tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    os.mkfifo(path)
    assert "not a regular file" in refusal(read, path)


def test_a_format_that_starts_a_program(tmp_path: Path) -> None:
    """Pillow hands PostScript to Ghostscript, whatever the file's ending."""
    path = tmp_path / "a.jpg"
    Image.fromarray(np.dstack([smooth(0)] * 3)).save(path, "EPS")
    with Image.open(path) as image:
        assert image.format == "EPS"
    assert "not an image in a known format" in refusal(read_image, path)


def test_encoded_radiographs_still_read(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", smooth(0), frame=encoded(smooth(0), "JPEG"), syntax=JPEGBaseline8Bit)
    assert read_dicom(path).shape == (48, 48)
