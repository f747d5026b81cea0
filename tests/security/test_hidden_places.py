"""Places of a DICOM file that can hide a name behind its image: `prepare_siim_acr.py` copies none of them."""

import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import Dataset
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit

from datasets.formats.dicom import read_dicom
from prepare_siim_acr import Job, prepare
from tests.datasets.radiographs import encoded, smooth, write_dicom

NAME = "SECRETNAME"
PIXELS = smooth(0)
WORDS = [int.from_bytes(NAME[i : i + 2].encode(), "little") for i in range(0, len(NAME), 2)]
TAGS = {
    "SOPClassUID", "SOPInstanceUID", "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "BitsAllocated",
    "BitsStored", "HighBit", "PixelRepresentation", "PixelData",
}  # fmt: skip
META = {
    "FileMetaInformationGroupLength", "FileMetaInformationVersion", "MediaStorageSOPClassUID",
    "MediaStorageSOPInstanceUID", "TransferSyntaxUID", "ImplementationClassUID", "ImplementationVersionName",
}  # fmt: skip


def item(**tags: object) -> Dataset:
    dataset = Dataset()
    for name, value in tags.items():
        setattr(dataset, name, value)
    return dataset


def table(**tags: object) -> Dataset:
    """Grey values that change nothing."""
    made = item(**({"LUTDescriptor": [256, 0, 16], "LUTData": list(range(0, 65536, 257))} | tags))
    made["LUTDescriptor"].VR = made["LUTData"].VR = "US"
    return made


def written(**tags: object) -> Callable[[Path], object]:
    return lambda path: write_dicom(path, PIXELS, **tags)


def jpeg(kind: str = "JPEG", behind: bytes = b"", **options: Any) -> Callable[[Path], object]:
    """Compressed pixels, with the options of Pillow's writer, and bytes behind their end."""
    syntax = JPEGBaseline8Bit if kind == "JPEG" else JPEG2000Lossless
    return lambda path: write_dicom(path, PIXELS, frame=encoded(PIXELS, kind, **options) + behind, syntax=syntax)


def exif() -> Image.Exif:
    made = Image.Exif()
    made[0x013B] = NAME
    return made


def second_fragment(path: Path) -> None:
    data = encoded(PIXELS, "JPEG")
    fragments = [data + b"\0" * (len(data) % 2), NAME.encode()]
    parts = [struct.pack("<HHI", 0xFFFE, 0xE000, len(part)) + part for part in (b"", *fragments)]
    write_dicom(path, PIXELS, frame=data, syntax=JPEGBaseline8Bit, PixelData=b"".join(parts))


def around_the_tags(path: Path) -> None:
    """In the preamble, in the file's own tags, and behind the last tag."""
    dataset = pydicom.dcmread(write_dicom(path, PIXELS))
    dataset.preamble = NAME.encode().ljust(128)
    dataset.file_meta.SourceApplicationEntityTitle = dataset.file_meta.ImplementationVersionName = NAME
    dataset.file_meta.PrivateInformationCreatorUID, dataset.file_meta.PrivateInformation = "1.2", NAME.encode()
    dataset.save_as(path)
    path.write_bytes(path.read_bytes() + struct.pack("<HH2sH", 0xFFFC, 0xFFFC, b"OB", 0))
    path.write_bytes(path.read_bytes() + struct.pack("<I", len(NAME)) + NAME.encode())


def private_tags(path: Path) -> None:
    dataset = pydicom.dcmread(write_dicom(path, PIXELS))
    dataset.private_block(0x0029, NAME, create=True).add_new(1, "UN", NAME.encode())
    dataset.save_as(path)


def overlay(path: Path) -> None:
    dataset = pydicom.dcmread(write_dicom(path, PIXELS))
    dataset.add_new(0x60003000, "OW", NAME.encode())
    dataset.add_new(0x60001500, "LO", NAME)
    dataset.save_as(path)


def unused_bits(path: Path) -> None:
    """Twelve of sixteen bits are the image; the other four, where old files keep overlays, spell the name."""
    deep = PIXELS.astype(np.uint16) << 4
    nibbles = [digit for letter in NAME.encode() for digit in (letter >> 4, letter & 15)]
    deep.ravel()[: len(nibbles)] |= np.array(nibbles, np.uint16) << 12
    write_dicom(path, deep, BitsStored=12, WindowCenter=2048, WindowWidth=4096)


PLACES: dict[str, Callable[[Path], object]] = {
    "a function for grey values": written(VOILUTFunction=NAME),
    "the text of a window": written(WindowCenterWidthExplanation=NAME, WindowCenter=128, WindowWidth=256),
    "the name of a rescaling": written(RescaleType=NAME, RescaleSlope=1, RescaleIntercept=0),
    "a colour profile": written(ICCProfile=NAME.encode()),
    "an icon": written(IconImageSequence=[item(PatientComments=NAME)]),
    "a nested sequence": written(RequestAttributesSequence=[item(ReferencedStudySequence=[item(PatientID=NAME)])]),
    "the text of a table": written(VOILUTSequence=[table(LUTExplanation=NAME)]),
    "the data of a table": written(VOILUTSequence=[table(LUTData=[*range(0, 65536, 257), *WORDS])]),
    "a table in place of a rescaling": written(ModalityLUTSequence=[table(ModalityLUTType=NAME)]),
    "an identifier": written(SOPInstanceUID=NAME, StudyInstanceUID=NAME),
    "private tags": private_tags,
    "overlays": overlay,
    "around the tags": around_the_tags,
    "behind uncompressed pixels": written(PixelData=PIXELS.tobytes() + NAME.encode()),
    "the unused bits of the pixels": unused_bits,
    "a JPEG's comment": jpeg(comment=NAME),
    "a JPEG's EXIF": jpeg(exif=exif()),
    "a JPEG's colour profile": jpeg(icc_profile=NAME.encode()),
    "behind a JPEG": jpeg(behind=NAME.encode()),
    "a second fragment": second_fragment,
    "a JPEG 2000's comment": jpeg("JPEG2000", irreversible=False, no_jp2=True, comment=NAME),
    "a JPEG 2000's boxes": jpeg("JPEG2000", b"\0\0\0\x12xml " + NAME.encode(), irreversible=False),
}
LEFT_OUT = {
    "behind uncompressed pixels": "its pixels are 2314 bytes, not 2304",
}
"""Where the bytes do not say which image is meant, there is no image to copy."""


@pytest.mark.parametrize("place", PLACES)
def test_no_hidden_place_is_copied(tmp_path: Path, place: str) -> None:
    source, copy = tmp_path / "source.dcm", tmp_path / "copy.dcm"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns about such tags
        PLACES[place](source)
    assert place == "the unused bits of the pixels" or NAME.encode() in source.read_bytes()
    reason = prepare(Job(source, ("-1",), (copy,), tmp_path / "mask.png"))
    assert reason == LEFT_OUT.get(place, "")
    if reason:
        return
    assert all(NAME.encode() not in path.read_bytes() for path in (copy, tmp_path / "mask.png"))
    kept = pydicom.dcmread(copy)
    assert {element.keyword for element in kept} == TAGS and {element.keyword for element in kept.file_meta} == META
    assert kept.preamble == b"\0" * 128 and len(kept.PixelData) == PIXELS.size
    shown = read_dicom(copy)
    assert np.array_equal(shown, read_dicom(source))
    assert np.abs(shown.astype(int) - PIXELS).max() <= (20 if "JPEG" in place or "fragment" in place else 1)
