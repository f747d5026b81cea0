"""Radiographs in DICOM files as 8-bit pixels, or one line about what is wrong with the file.

Compressed pixels are decoded by Pillow where it can. Other codecs (GDCM, or whatever pydicom finds) run in a child
process, because a broken file can crash them. No tag's text ever enters an error, because it may name a patient; the
messages and warnings of the libraries are dropped for the same reason.
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

from common.files import check_regular
from common.isolation import IsolatedError, in_child
from datasets.formats.images import UnreadableImageError, check_pixels
from datasets.formats.notices import say_once

GREY = ("MONOCHROME1", "MONOCHROME2")
NUMBERS = ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth")
LARGEST = 1 << 30
"""Bytes of a file."""
NARROW = 1 / 8
"""Of the range of the stored bits: at most 32 of the 256 grey values would be used."""
WINDOW = (0.5, 99.5)
BY_PILLOW = (JPEGBaseline8Bit, JPEG2000Lossless, JPEG2000)


def read_dicom(path: Path | str) -> np.ndarray:
    """[H, W] uint8 as a viewer shows it: 0 is black.

    Values are rescaled to modality units (DICOM PS3.3 C.11.1). Then the VOI window or table (C.11.2), or without one
    the range of the stored bits, is mapped to 0..255; MONOCHROME1 is inverted. Where the pixels of more than 8 bits use
    less than `NARROW` of that range, as 12-bit pixels stored as 16 bits do, their percentiles `WINDOW` are the window;
    one line says so. An 8-bit MONOCHROME2 file without a window keeps its values. Raises UnreadableImageError for a
    file that is broken, truncated, in colour, multi-frame, ...
    """
    with quiet():
        dataset = _open(path)
        if problem := _problem(dataset):
            raise UnreadableImageError(path, problem)
        check_pixels(path, int(dataset.Columns), int(dataset.Rows))
        if problem := _wrong_length(dataset):
            raise UnreadableImageError(path, problem)
        # On a broken file pydicom and the codecs raise any kind of error.
        try:
            pixels = _pixels(dataset)
        except Exception as error:
            kind = error.kind if isinstance(error, IsolatedError) else type(error).__name__
            reason = f"its pixels are truncated or cannot be decoded ({_coding(dataset)}: {kind})"
            raise UnreadableImageError(path, reason) from None
        try:
            return _as_shown(pixels, dataset)
        except Exception as error:
            reason = f"its grey-value tags are invalid ({type(error).__name__})"
            raise UnreadableImageError(path, reason) from None


@contextmanager
def quiet() -> Iterator[None]:
    """Silence pydicom's warnings and log messages, which may quote a tag."""
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
    try:
        check_regular(path, LARGEST)
        if read_file_meta_info(path).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            raise UnreadableImageError(path, "deflated as a whole, which could expand without limit")
        return dcmread(path)
    except UnreadableImageError:
        raise
    except FileNotFoundError:
        raise UnreadableImageError(path, "no such file") from None
    except OSError as error:
        raise UnreadableImageError(path, error.strerror or "cannot be read") from None
    except InvalidDicomError:
        raise UnreadableImageError(path, "not a DICOM file") from None
    except Exception as error:
        raise UnreadableImageError(path, f"a broken DICOM file ({type(error).__name__})") from None


def _problem(dataset: Dataset) -> str | None:
    """Why the file is not a single grey image; None if it is."""
    try:
        if "PixelData" not in dataset:
            return "no pixels (none stored, or the file is truncated)"
        if dataset.PhotometricInterpretation not in GREY or dataset.SamplesPerPixel != 1:
            return f"its pixels are not grey ({' or '.join(GREY)})"
        if (frames := int(dataset.get("NumberOfFrames") or 1)) != 1:
            return f"{frames} frames where a radiograph has one"
        if min(int(dataset.Rows), int(dataset.Columns)) < 1:
            return "no pixels (it has no rows or no columns)"
        if dataset.get("HighBit", dataset.BitsStored - 1) != dataset.BitsStored - 1:
            return f"its values end at bit {dataset.HighBit}, not {dataset.BitsStored - 1}"
        for name in NUMBERS:
            if not np.isfinite(np.atleast_1d(dataset.get(name) or 0).astype(float)).all():
                return f"its {name} is not a finite number"
    except Exception as error:
        return f"the tags that describe its pixels are missing or wrong ({type(error).__name__})"
    return None


def _wrong_length(dataset: Dataset) -> str | None:
    """Why uncompressed pixels do not fit the size that the tags give; zeros may follow them.

    Other bytes behind them mean that the size is wrong, so that the image would be sheared, or hide something.
    """
    try:
        if dataset.file_meta.TransferSyntaxUID.is_compressed:
            return None
        pixels, wanted = dataset.PixelData, dataset.Rows * dataset.Columns * dataset.BitsAllocated // 8
        if pixels[wanted:].strip(b"\0"):
            return f"its pixels are {len(pixels)} bytes, not {wanted}"
    except Exception as error:
        return f"the tags that describe its pixels are missing or wrong ({type(error).__name__})"
    return None


def _pixels(dataset: Dataset) -> np.ndarray:
    """Stored values [H, W]."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax in BY_PILLOW:
        dataset.pixel_array_options(decoding_plugin="pillow")
    if syntax in (*BY_PILLOW, RLELossless) or not syntax.is_compressed:
        return dataset.pixel_array
    return in_child(lambda: dataset.pixel_array)


def _coding(dataset: Dataset) -> str:
    """Name of the transfer syntax. An unknown UID may be any text, so it is not shown."""
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
            values = apply_windowing(values, dataset)  # to low..high, where low > high for a negative slope
        else:
            low, high = _used(values, min(low, high), max(low, high), dataset.BitsStored)
    if low == high or not np.isfinite((low, high, values.min(), values.max())).all():
        raise ValueError("the range of grey values is empty or not finite")
    grey = np.clip((values - low) / (high - low), 0, 1)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        grey = 1 - grey
    return np.round(grey * 255).astype(np.uint8)


def _used(values: np.ndarray, low: float, high: float, bits: int) -> tuple[float, float]:
    """The range to show of a file without a window: low..high, or percentiles of the pixels if they are narrow."""
    first, last = np.percentile(values, WINDOW)
    if bits <= 8 or not 0 < last - first < NARROW * (high - low):
        return low, high
    say_once(
        f"DICOM files without a window: where the pixels use less than {NARROW:.1%} of the range of their bits, "
        f"percentiles {WINDOW[0]:g} and {WINDOW[1]:g} become black and white"
    )
    return float(first), float(last)


def _range(dataset: Dataset) -> tuple[float, float]:
    """The smallest and largest value that the stored bits can hold, in modality units."""
    bits = dataset.BitsStored
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if dataset.PixelRepresentation else (0, 2**bits - 1)
    first, last = apply_modality_lut(np.array([low, high]), dataset)
    return float(first), float(last)
