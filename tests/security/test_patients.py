"""DICOM tags that name a patient are never copied, printed or logged."""

import logging
import struct
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.data import get_testdata_file
from pydicom.datadict import DicomDictionary, keyword_for_tag
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

import prepare_siim_acr
from common.errors import UserError
from datasets.formats.dicom import read_dicom
from datasets.formats.dicom_copy import dicom_bytes
from datasets.formats.images import UnreadableImageError
from tests.datasets.radiographs import smooth, source_of, write_archive

SECRET = "SECRET"
SAMPLES = sorted(path.name for path in (Path(pydicom.__file__).parent / "data" / "test_files").glob("*.dcm"))
TEXTS = ("SH", "LO", "ST", "LT", "UT", "PN", "UC")


def telling(path: Path, number: int = 0, **tags: object) -> Path:
    """A radiograph with the secret in every text tag, in private tags, in a sequence and in the preamble."""
    dataset = Dataset()
    for tag, (kind, _, _, retired, _) in DicomDictionary.items():
        if kind in TEXTS and not retired and keyword_for_tag(tag) and tag >> 16 > 2:
            dataset.add_new(tag, kind, SECRET)
    dataset.PatientID, dataset.PatientBirthDate, dataset.StudyDate = SECRET, "19010203", "19010203"
    item = Dataset()
    item.LUTDescriptor, item.LUTData, item.LUTExplanation = [256, 0, 10], list(range(256)), SECRET
    item["LUTDescriptor"].VR = item["LUTData"].VR = "US"
    dataset.VOILUTSequence = [item]
    dataset.private_block(0x000B, SECRET, create=True).add_new(1, "LO", SECRET)
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 48, 48, 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation, dataset.PixelData = 7, 0, smooth(number).tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.file_meta, dataset.preamble = FileMetaDataset(), SECRET.encode().ljust(128)
    dataset.file_meta.TransferSyntaxUID, dataset.file_meta.SourceApplicationEntityTitle = ExplicitVRLittleEndian, SECRET
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.save_as(path, enforce_file_format=True)
    assert path.read_bytes().count(SECRET.encode()) > 500
    return path


def test_every_sample_looks_the_same_without_its_patient(tmp_path: Path) -> None:
    radiographs = 0
    for name in SAMPLES:
        source = get_testdata_file(name, download=False)
        assert isinstance(source, str)
        try:
            shown = read_dicom(source)
        except UnreadableImageError:
            continue
        (tmp_path / "a.dcm").write_bytes(dicom_bytes(shown))
        assert np.array_equal(read_dicom(tmp_path / "a.dcm"), shown), name
        assert "PatientName" not in pydicom.dcmread(tmp_path / "a.dcm")
        radiographs += 1
    assert radiographs >= 15


def test_prepared_sets_and_reports_hold_no_patient(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    tubes = write_archive(tmp_path / "siim", count=10, tested=4)
    for number in range(10):
        path = telling(source_of(tmp_path / "siim", number), number)
        if number == 5:
            path.write_bytes(path.read_bytes()[:-100])
        if number == 6:
            path.write_bytes(path.read_bytes().replace(b"MONOCHROME2", b"SECRET^NAME"))
    caplog.set_level(logging.DEBUG)
    prepare_siim_acr.main(
        ["--pkl_file_path", str(tubes), "--root_dir", str(tmp_path / "siim"), "--out", str(tmp_path / "out")]
    )
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len([path for path in written if path.suffix == ".dcm"]) == 4 + 4 + 4
    assert all(SECRET.encode() not in path.read_bytes() for path in written)
    said = capfd.readouterr()
    assert SECRET not in said.out + said.err + caplog.text and "2 files left out" in said.out


def broken(path: Path, seed: int) -> None:
    """Random bytes changed in a file full of the secret."""
    rng, data = np.random.default_rng(seed), bytearray(path.read_bytes())
    for place in rng.integers(132, len(data), 12):
        data[place] = rng.integers(256)
    path.write_bytes(data)


def test_no_error_quotes_a_tag(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path, whole = tmp_path / "a.dcm", telling(tmp_path / "whole.dcm").read_bytes()
    caplog.set_level(logging.DEBUG)
    lines = []
    for seed in range(60):
        path.write_bytes(whole)
        broken(path, seed)
        try:
            read_dicom(path)
        except UserError as error:
            lines.append(str(error))
    syntax = struct.pack("<HH2sH", 2, 0x10, b"UI", 20)
    assert syntax in whole
    path.write_bytes(whole.replace(syntax + b"1.2.840.10008.1.2.1\0", syntax + b"SECRET.NAME.OF.A.MAN"))
    with pytest.raises(UnreadableImageError) as caught:
        read_dicom(path)
    said = capfd.readouterr()
    assert len(lines) > 10
    assert SECRET not in " ".join(lines) + str(caught.value) + said.out + said.err + caplog.text
