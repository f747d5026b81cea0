"""Valid images, arrays and radiographs, and their readers."""

import io
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import pydicom
from PIL import Image
from pydicom.uid import (
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from datasets.formats.dicom import read_dicom
from datasets.formats.images import UnreadableImageError, read_image, read_indices, read_mask
from tests.datasets.radiographs import encoded, smooth, write_dicom
from tests.fuzz.kind import File, content

SIDE = 24


def images() -> list[File]:
    grey = smooth(0, SIDE, SIDE)
    rgb = np.dstack([grey, grey[::-1], grey.T])
    exif = Image.Exif()
    exif[0x0112] = 6
    made: list[tuple[np.ndarray | Image.Image, str, dict[str, Any]]] = [
        (rgb, "PNG", {}), (grey, "PNG", {}), (grey.astype(np.uint16) * 257, "PNG", {}),
        (np.dstack([rgb, grey]), "PNG", {}), (Image.fromarray(rgb).quantize(16), "PNG", {"transparency": 0}),
        (rgb, "JPEG", {"exif": exif}), (rgb, "JPEG", {"progressive": True}), (grey, "JPEG", {}),
        (Image.fromarray(rgb).convert("CMYK"), "JPEG", {}), (Image.fromarray(rgb).quantize(16), "GIF", {}),
        (rgb, "BMP", {}), (rgb, "PPM", {}), (rgb, "JPEG2000", {}), (rgb, "TIFF", {}),
        (rgb, "TIFF", {"compression": "tiff_lzw"}), (rgb, "TIFF", {"compression": "jpeg"}),
        (grey.astype(np.float32) / 255, "TIFF", {"compression": "tiff_adobe_deflate"}),
        (grey.astype(np.uint16) * 257, "TIFF", {}), (grey > 99, "TIFF", {"compression": "group4"}),
        (rgb, "WEBP", {}), (np.dstack([rgb, grey]), "WEBP", {"lossless": True}),
    ]  # fmt: skip
    found = []
    for pixels, kind, options in made:
        picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
        buffer = io.BytesIO()
        picture.save(buffer, kind, **options)
        found.append((f".{kind.lower()}", buffer.getvalue()))
    return found


def read_image_file(path: Path) -> None:
    image = read_image(path)
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size > 0
    mask = read_mask(path)
    assert mask.dtype == bool and mask.ndim == 2 and mask.shape == image.shape[:2]
    try:
        indices = read_indices(path)
    except UnreadableImageError:
        return
    assert indices.dtype == np.uint8 and indices.shape == mask.shape


def arrays() -> list[File]:
    mask = np.random.default_rng(0).random((SIDE, SIDE))
    kept: list[np.ndarray] = [
        mask > 0.5,
        mask,
        mask.astype(np.float16),
        (mask * 9).astype(">i4"),
        np.asfortranarray(mask),
    ]
    return [content(lambda path, values=values: np.save(path, values), ".npy") for values in kept]


def read_array(path: Path) -> None:
    mask = read_mask(path)
    assert mask.dtype == bool and mask.ndim == 2


def radiographs() -> list[File]:
    grey, syntaxes = smooth(0, SIDE, SIDE), (ImplicitVRLittleEndian, ExplicitVRBigEndian)
    deep = grey.astype(np.uint16) * 16
    window: dict[str, Any] = {
        "PhotometricInterpretation": "MONOCHROME1",
        "WindowCenter": 100,
        "WindowWidth": 90,
        "RescaleSlope": 2,
        "RescaleIntercept": -5,
    }
    jpeg, jpeg_2000 = encoded(grey, "JPEG"), encoded(grey, "JPEG2000", irreversible=False, no_jp2=True)
    return [
        content(lambda path: write_dicom(path, grey), ".dcm"),
        content(lambda path: write_dicom(path, deep, BitsStored=12, **window), ".dcm"),
        content(lambda path: write_dicom(path, grey, frame=jpeg, syntax=JPEGBaseline8Bit), ".dcm"),
        content(lambda path: write_dicom(path, grey, frame=jpeg_2000, syntax=JPEG2000Lossless), ".dcm"),
        content(lambda path: _recoded(write_dicom(path, deep, BitsStored=12)), ".dcm"),
        content(lambda path: _packed(write_dicom(path, deep, BitsStored=12), "JPEGLSLossless"), ".dcm"),
        content(lambda path: _packed(write_dicom(path, deep, BitsStored=12), "JPEGLosslessProcess14_1"), ".dcm"),
        *(content(lambda path, syntax=syntax: write_dicom(path, grey, syntax=syntax), ".dcm") for syntax in syntaxes),
    ]  # fmt: skip


def _recoded(path: Path) -> None:
    dataset = pydicom.dcmread(path)
    dataset.compress(RLELossless)
    dataset.save_as(path)


def _packed(path: Path, syntax: str) -> None:
    """Compress with a codec that only GDCM has."""
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(path))
    assert writer.Write()


def read_radiograph(path: Path) -> None:
    shown = read_dicom(path)
    assert shown.dtype == np.uint8 and shown.ndim == 2 and shown.size > 0
