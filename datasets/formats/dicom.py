"""A radiograph in a DICOM file as 8-bit pixels, or one line that says what is wrong with the file.

Compressed pixels are decoded by Pillow where it can, else by pydicom with GDCM or whatever decoder is installed, in a
process of their own, since a broken file ends GDCM's. No text of a file's tags ever enters an error: they may name a
patient, and so may the messages and warnings of the libraries.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.pixels import apply_modality_lut, apply_voi, apply_windowing
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
    UID_dictionary,
)

from common.isolation import IsolatedError, in_child
from datasets.formats.images import UnreadableImageError, check_pixels, check_regular

GREY = ("MONOCHROME1", "MONOCHROME2")
BY_PILLOW = (JPEGBaseline8Bit, JPEG2000Lossless, JPEG2000)


def read_dicom(path: Path | str) -> np.ndarray:
    """[H, W] uint8 as a viewer shows it: 0 is black. Deeper pixels are scaled, never wrapped.

    The VOI window or table where the file has one, else the whole range that its bits can hold, becomes 0..255, after
    the rescaling to modality units (DICOM PS3.3 C.11.1, C.11.2). MONOCHROME1 is inverted. An 8-bit MONOCHROME2 file
    without window keeps its values. Raises UnreadableImageError: broken, cut off, in colour, of several frames, ...
    """
    with quiet():
        dataset = _open(path)
        if problem := _problem(dataset):
            raise UnreadableImageError(path, problem)
        check_pixels(path, int(dataset.Columns), int(dataset.Rows))
        # Parsers of broken files raise anything at all.
        try:
            pixels = _pixels(dataset)
        except Exception as error:
            kind = error.kind if isinstance(error, IsolatedError) else type(error).__name__
            reason = f"its pixels are cut off or cannot be decoded ({_coding(dataset)}: {kind})"
            raise UnreadableImageError(path, reason) from None
        try:
            return _as_shown(pixels, dataset)
        except Exception as error:
            reason = f"the tags that give its grey values make no sense ({type(error).__name__})"
            raise UnreadableImageError(path, reason) from None


@contextmanager
def quiet() -> Iterator[None]:
    """No warning and no log line of pydicom's, which may quote a tag."""
    log = logging.getLogger("pydicom")
    before = log.propagate
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log.propagate = False
        try:
            yield
        finally:
            log.propagate = before


def _open(path: Path | str) -> Dataset:
    check_regular(path)
    try:
        if read_file_meta_info(path).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            raise UnreadableImageError(path, "deflated as a whole, which can expand without end; store it otherwise")
        return dcmread(path)
    except UnreadableImageError:
        raise
    except OSError as error:
        raise UnreadableImageError(path, error.strerror or "cannot be read") from None
    except InvalidDicomError:
        raise UnreadableImageError(path, "not a DICOM file") from None
    except Exception as error:
        raise UnreadableImageError(path, f"a broken DICOM file ({type(error).__name__})") from None


def _problem(dataset: Dataset) -> str | None:
    """What keeps a file from being one grey image of bearable size."""
    try:
        if "PixelData" not in dataset:
            return "no pixels (none were stored, or the file is cut off)"
        if dataset.PhotometricInterpretation not in GREY or dataset.SamplesPerPixel != 1:
            return f"its pixels are not grey ({' or '.join(GREY)})"
        if (frames := int(dataset.get("NumberOfFrames") or 1)) != 1:
            return f"{frames} frames where a radiograph has one"
        if min(int(dataset.Rows), int(dataset.Columns)) < 1:
            return "no pixels (it has no rows or no columns)"
    except Exception as error:
        return f"the tags that describe its pixels are missing or wrong ({type(error).__name__})"
    return None


def _pixels(dataset: Dataset) -> np.ndarray:
    """[H, W], the stored values."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax in BY_PILLOW:
        dataset.pixel_array_options(decoding_plugin="pillow")
    if syntax in (*BY_PILLOW, RLELossless) or not syntax.is_compressed:
        return dataset.pixel_array
    return in_child(lambda: dataset.pixel_array)


def _coding(dataset: Dataset) -> str:
    """For people. An unknown code may be any text."""
    syntax = str(dataset.file_meta.get("TransferSyntaxUID"))
    return UID_dictionary[syntax][0] if syntax in UID_dictionary else "unknown coding"


def _as_shown(stored: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Stored values [H, W] -> [H, W] uint8."""
    values = apply_modality_lut(stored, dataset)
    if dataset.get("VOILUTSequence"):
        values = apply_voi(np.round(values).astype(np.int64), dataset)
        low, high = 0.0, float(2 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1)
    else:
        low, high = _range(dataset)
        if dataset.get("WindowWidth"):
            values = apply_windowing(values, dataset)  # onto low..high, the other way round where the slope is negative
        else:
            low, high = sorted((low, high))
    if low == high:
        raise ValueError("no range of grey values")
    share = np.clip((values - low) / (high - low), 0, 1)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        share = 1 - share
    return np.round(share * 255).astype(np.uint8)


def _range(dataset: Dataset) -> tuple[float, float]:
    """What the smallest and the largest value that the stored bits can hold are in modality units."""
    bits = dataset.BitsStored
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if dataset.PixelRepresentation else (0, 2**bits - 1)
    first, last = apply_modality_lut(np.array([low, high]), dataset)
    return float(first), float(last)
