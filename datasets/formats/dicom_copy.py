"""Copies of DICOM files without patient data: only the tags that describe the image are kept."""

import hashlib
import io
from pathlib import Path

from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import SecondaryCaptureImageStorage, generate_uid

from datasets.formats.dicom import quiet
from datasets.formats.images import UnreadableImageError

KEPT = (
    "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns", "BitsAllocated", "BitsStored",
    "HighBit", "PixelRepresentation", "WindowCenter", "WindowWidth", "RescaleIntercept", "RescaleSlope",
    "VOILUTFunction", "PixelData",
)  # fmt: skip
"""All the tags `read_dicom` needs: numbers and fixed keywords, no free text."""
TABLES = ("ModalityLUTSequence", "VOILUTSequence")
IN_TABLES = ("LUTDescriptor", "LUTData")


def without_patient(path: Path) -> bytes:
    """The bytes of a DICOM file with the same image and only the tags above: no person, place, date or device.

    The pixels may still show a name. Raises UnreadableImageError.
    """
    with quiet():
        try:
            source = dcmread(path)
            copy = _chosen(source, KEPT)
            for name in TABLES:
                if name in source:
                    setattr(copy, name, [_chosen(item, IN_TABLES) for item in source[name].value])
            copy.SOPClassUID = SecondaryCaptureImageStorage
            copy.SOPInstanceUID = generate_uid(entropy_srcs=[hashlib.sha256(source.PixelData).hexdigest()])
            copy.file_meta = FileMetaDataset()
            copy.file_meta.TransferSyntaxUID = source.file_meta.TransferSyntaxUID
            buffer = io.BytesIO()
            copy.save_as(buffer, enforce_file_format=True)
        except Exception as error:  # pydicom raises any kind; the message may quote a tag
            raise UnreadableImageError(path, f"cannot be written without its tags ({type(error).__name__})") from None
    return buffer.getvalue()


def _chosen(source: Dataset, names: tuple[str, ...]) -> Dataset:
    copy = Dataset()
    for name in names:
        if name in source:
            copy.add(source[name])
    return copy
