"""Radiographs without patient data: new DICOM files made from the pixels alone."""

import hashlib
import io

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid


def dicom_bytes(pixels: np.ndarray) -> bytes:
    """Pixels [H, W] uint8 as an uncompressed DICOM file that `read_dicom` reads back unchanged.

    Nothing of the file that the pixels came from is copied: compressed pixels may carry comments, tables of grey values
    may carry text, and so may the unused bits and the end of uncompressed pixels. The tags are the size, the type of
    the pixels, and identifiers computed from them. The image may still show a name.
    """
    height, width = pixels.shape
    dataset = Dataset()
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[f"{height} x {width}", digest])
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = height, width
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.add_new("PixelData", "OB", pixels.tobytes() + b"\0" * (pixels.size % 2))
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
