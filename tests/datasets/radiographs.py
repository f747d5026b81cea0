"""DICOM files of any kind, and a small copy of the SIIM-ACR archive as Kaggle published it."""

import csv
import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEGBaseline8Bit, SecondaryCaptureImageStorage

PATIENT = "SECRET^NAME"


def encoded(pixels: np.ndarray, kind: str, **options: Any) -> bytes:
    """An image file in memory."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind, **options)
    return buffer.getvalue()


def write_dicom(
    path: Path, pixels: np.ndarray, *, frame: bytes | None = None, syntax: UID = ExplicitVRLittleEndian, **tags: Any
) -> Path:
    """Grey pixels [H, W] or [F, H, W] as they are, or the one compressed `frame`; `tags` replace or (None) remove."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    dataset.PatientName = PATIENT
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.itemsize
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes() if frame is None else encapsulate([frame])
    dataset["PixelData"].VR = "OB" if frame is not None or pixels.itemsize == 1 else "OW"
    for name, value in tags.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    if "BitsStored" in dataset:
        dataset.HighBit = dataset.BitsStored - 1
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def smooth(seed: int, height: int = 48, width: int = 48) -> np.ndarray:
    """[H, W] uint8, soft spots over the whole range."""
    spots = np.random.default_rng(seed).integers(0, 256, (4, 4), dtype=np.uint8)
    return np.asarray(Image.fromarray(spots).resize((width, height), Image.Resampling.BICUBIC))


def image_id(number: int) -> str:
    return f"1.2.276.0.7230010.3.1.4.8323329.{number}.1517875160.{number:06d}"


def source_of(root: Path, number: int) -> Path:
    name = image_id(number)
    return root / "dicom-images-train" / f"{name}.1" / f"{name}.2" / f"{name}.dcm"


def write_rows(root: Path, rows: list[tuple[str, str]]) -> None:
    """train-rle.csv with the published blanks."""
    with (root / "train-rle.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("ImageId", " EncodedPixels"), *((name, f" {runs}") for name, runs in rows)])


def write_tubes(path: Path, tubes: dict[str, Any]) -> Path:
    """As .pkl, .json or .csv."""
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(tubes))
    elif path.suffix == ".json":
        path.write_text(json.dumps(tubes))
    else:
        path.write_text("".join(f"{name},{tube}\n" for name, tube in [("ImageId", "tube"), *tubes.items()]))
    return path


def write_archive(root: Path, count: int = 24, tested: int = 8) -> Path:
    """`count` radiographs 48 x 48, odd ones positive; the first `tested` are in the table of tubes (2, 3, 6, 7: tube).

    The first positive has its mask in two rows. Returns the table of tubes.
    """
    rows = []
    for number in range(count):
        pixels = smooth(number)
        write_dicom(source_of(root, number), pixels, frame=encoded(pixels, "JPEG"), syntax=JPEGBaseline8Bit)
        # From column 2 (or 30), row 5: ten pixels down, and ten more in the next column.
        rows.append((image_id(number), f"{2 * 48 + 5} 10 38 10" if number % 2 else "-1"))
    rows.append((image_id(1), f"{30 * 48 + 5} 10 38 10"))
    write_rows(root, rows)
    return write_tubes(root / "tubes.pkl", {image_id(number): number // 2 % 2 for number in range(tested)})
