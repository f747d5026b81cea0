"""DICOM files as 8-bit pixels: every depth, window and coding, and one line for every error."""

import logging
import mmap
import warnings
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, RLELossless

from datasets import DataConfig, eval_loader, load_split
from datasets.formats import notices
from datasets.formats.dicom import read_dicom
from datasets.formats.images import UnreadableImageError
from tests.datasets.radiographs import PATIENT, encoded, smooth, write_dicom

SAMPLES = sorted(path.name for path in (Path(pydicom.__file__).parent / "data" / "test_files").glob("*.dcm"))


def sample(name: str) -> str:
    """A file that ships with pydicom."""
    path = get_testdata_file(name, download=False)
    assert isinstance(path, str)
    return path


def ramp(bits: int, signed: bool = False) -> np.ndarray:
    """[16, 16] over the whole range of that many bits."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    dtype = f"{'int' if signed else 'uint'}{8 if bits <= 8 else 16}"
    return np.linspace(low, high, 256).round().astype(dtype).reshape(16, 16)


def textbook(value: float, bits: int, signed: bool, tags: dict[str, Any]) -> float:
    """DICOM PS3.3 C.11.1.1.2, C.11.2.1.2, C.11.2.1.3, one pixel at a time, onto 0..255."""
    slope, intercept = tags.get("RescaleSlope", 1), tags.get("RescaleIntercept", 0)
    x = value * slope + intercept
    if "WindowWidth" in tags:
        c, w = np.atleast_1d(tags["WindowCenter"])[0], np.atleast_1d(tags["WindowWidth"])[0]
        kind = tags.get("VOILUTFunction", "LINEAR")
        if kind == "SIGMOID":
            y = 255 / (1 + np.exp(min(-4 * (x - c) / w, 700)))
        else:
            c, w = (c - 0.5, w - 1) if kind == "LINEAR" else (c, w)
            y = 0 if x <= c - w / 2 else 255 if x > c + w / 2 else ((x - c) / w + 0.5) * 255
    else:
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        ends = sorted((low * slope + intercept, high * slope + intercept))
        y = (x - ends[0]) / (ends[1] - ends[0]) * 255
    return float(255 - y if tags.get("PhotometricInterpretation") == "MONOCHROME1" else y)


INVERTED = {"PhotometricInterpretation": "MONOCHROME1"}
RESCALED = {"RescaleSlope": 2, "RescaleIntercept": -24}


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize(
    "tags",
    [
        {},
        INVERTED,
        RESCALED,
        {"RescaleSlope": -1, "RescaleIntercept": 1000},
        {"WindowCenter": 60, "WindowWidth": 50},
        {"WindowCenter": 60, "WindowWidth": 50} | INVERTED,
        {"WindowCenter": [60, 1], "WindowWidth": [50, 2], "VOILUTFunction": "LINEAR_EXACT"} | RESCALED,
        {"WindowCenter": 60.5, "WindowWidth": 50.25, "VOILUTFunction": "SIGMOID"},
        {"WindowCenter": 40, "WindowWidth": 80, "RescaleSlope": -1, "RescaleIntercept": 100},
    ],
    ids=lambda tags: "-".join(tags) or "plain",
)
def test_the_textbook(tmp_path: Path, bits: int, signed: bool, tags: dict[str, Any]) -> None:
    values = ramp(bits, signed)
    shown = read_dicom(write_dicom(tmp_path / "a.dcm", values, BitsStored=bits, **tags))
    assert shown.dtype == np.uint8 and shown.shape == (16, 16)
    wanted = [textbook(value, bits, signed, tags) for value in values.ravel().tolist()]
    assert np.abs(shown.ravel() - np.array(wanted)).max() <= 0.5 + 1e-6
    assert shown.max() > 200 and shown.min() < 50


def test_eight_bits_keep_their_values_and_inverted_ones_are_turned(tmp_path: Path) -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(read_dicom(write_dicom(tmp_path / "a.dcm", values)), values)
    assert np.array_equal(read_dicom(write_dicom(tmp_path / "b.dcm", values, **INVERTED)), 255 - values)


def test_sixteen_bits_never_wrap(tmp_path: Path) -> None:
    """300 becomes 44 in the published cast."""
    values = np.array([[0, 255, 256, 300, 65535]], dtype=np.uint16)
    assert read_dicom(write_dicom(tmp_path / "a.dcm", values)).tolist() == [[0, 1, 1, 1, 255]]


def test_narrow_pixels_without_a_window_fill_the_grey_values(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve bits stored as sixteen, with two hot pixels: nearly black by the range of the bits."""
    monkeypatch.setattr(notices, "_SAID", bytearray(1 << 12))
    values = np.round(smooth(0, 64, 64) / 255.0 * 1500 + 200).astype(np.uint16)
    values[0, :2] = 65535
    low, high = np.percentile(values, (0.5, 99.5))
    wanted = np.round(np.clip((values - low) / (high - low), 0, 1) * 255)
    for tags in ({}, RESCALED, {"RescaleSlope": -1, "RescaleIntercept": 100}, INVERTED):
        shown = read_dicom(write_dicom(tmp_path / "a.dcm", values, **tags)).astype(int)
        turned = tags is INVERTED or tags.get("RescaleSlope") == -1
        assert np.abs(shown - (255 - wanted if turned else wanted)).max() <= 1 and shown.std() > 50
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("DICOM files without a window: where the pixels use less than 12.5% of the range")


@pytest.mark.parametrize(
    ("values", "tags"),
    [
        (np.linspace(0, 20, 256).round().astype(np.uint8), {}),  # 8 bits lose nothing
        (np.linspace(0, 9000, 256).round().astype(np.uint16), {}),  # more than an eighth of the range
        (np.full(256, 300, np.uint16), {}),  # one value has no range
        (np.linspace(0, 1500, 256).round().astype(np.uint16), {"WindowCenter": 32768, "WindowWidth": 65536}),
    ],
)
def test_other_pixels_keep_the_range_of_their_bits(
    tmp_path: Path, values: np.ndarray, tags: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    shown = read_dicom(write_dicom(tmp_path / "a.dcm", values.reshape(16, 16), **tags))
    top = 2 ** (8 * values.itemsize) - 1
    assert np.abs(shown.ravel() - values / top * 255).max() <= 0.51 and not caplog.records


def test_the_line_about_narrow_pixels_appears_once_with_loading_processes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with other workers in the next epoch."""
    monkeypatch.setattr(notices, "_SAID", mmap.mmap(-1, 1 << 12))
    monkeypatch.setattr(logging.getLogger("datasets"), "handlers", [logging.StreamHandler()])
    for i in range(8):
        write_dicom(tmp_path / "full_test_set" / str(i % 2) / f"{i}.dcm", smooth(i).astype(np.uint16) * 5)
    split = load_split(DataConfig(name="siim_acr", root=str(tmp_path), image_size=16), "test", train=False, seed=0)
    for _ in range(2):
        assert sum(len(batch) for batch in eval_loader(split, batch_size=2, workers=2)) == 8
    assert capfd.readouterr().err.count("DICOM files without a window") == 1


def test_a_table_in_place_of_a_window(tmp_path: Path) -> None:
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [4, 10, 12], [0, 1000, 2000, 4095]
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "US"
    values = np.array([[0, 10, 11, 12, 13, 200]], dtype=np.uint8)
    shown = read_dicom(write_dicom(tmp_path / "a.dcm", values, VOILUTSequence=[table]))
    assert shown.tolist() == [[0, 0, round(1000 / 4095 * 255), round(2000 / 4095 * 255), 255, 255]]


def test_compressed_pixels(tmp_path: Path) -> None:
    pixels = smooth(0)
    jpeg = encoded(pixels, "JPEG", quality=90)
    shown = read_dicom(write_dicom(tmp_path / "a.dcm", pixels, frame=jpeg, syntax=JPEGBaseline8Bit))
    assert np.abs(shown.astype(int) - pixels).max() < 16
    lossless = encoded(pixels, "JPEG2000", irreversible=False, no_jp2=True)
    path = write_dicom(tmp_path / "b.dcm", pixels, frame=lossless, syntax=JPEG2000Lossless)
    assert np.array_equal(read_dicom(path), pixels)
    dataset = pydicom.dcmread(write_dicom(tmp_path / "c.dcm", pixels))
    dataset.compress(RLELossless)
    dataset.save_as(tmp_path / "c.dcm")
    assert np.array_equal(read_dicom(tmp_path / "c.dcm"), pixels)


@pytest.mark.parametrize("syntax", ["JPEGLosslessProcess14", "JPEGLosslessProcess14_1", "JPEGLSLossless"])
def test_lossless_jpeg(tmp_path: Path, syntax: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 4096, (20, 30), dtype=np.uint16)
    reader = gdcm.ImageReader()
    reader.SetFileName(str(write_dicom(tmp_path / "plain.dcm", pixels, BitsStored=12)))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(tmp_path / "packed.dcm"))
    assert writer.Write()
    assert np.array_equal(read_dicom(tmp_path / "packed.dcm"), np.round(pixels / 4095 * 255).astype(np.uint8))


@pytest.mark.parametrize("name", SAMPLES)
def test_every_sample_is_a_image_or_one_line(name: str, recwarn: pytest.WarningsRecorder) -> None:
    path = sample(name)
    try:
        shown = read_dicom(path)
    except UnreadableImageError as error:
        assert "\n" not in str(error) and error.path == path and error.reason
    else:
        assert shown.dtype == np.uint8 and shown.ndim == 2 and shown.size > 1
    assert len(recwarn) == 0, "a warning may quote a patient's tags"


def test_one_sample_in_every_coding_looks_the_same() -> None:
    pictures = [read_dicom(sample(f"MR_small{kind}.dcm")) for kind in (
        "", "_RLE", "_bigendian", "_expb", "_implicit", "_jp2klossless", "_jpeg_ls_lossless", "_padded",
    )]  # fmt: skip
    assert all(np.array_equal(image, pictures[0]) for image in pictures)
    assert pictures[0].max() == 255 and pictures[0].std() > 50


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "MR_truncated.dcm",
            r"pixels are truncated or cannot be decoded \(Explicit VR Little Endian: ValueError\)",
        ),
        ("no_meta.dcm", "not a DICOM file"),
        ("rtplan.dcm", "no pixels"),
        ("SC_rgb_jpeg.dcm", "its pixels are not grey"),
        ("examples_palette.dcm", "its pixels are not grey"),
        ("rtdose.dcm", "15 frames where a radiograph has one"),
        ("badVR.dcm", "the tags that describe its pixels are missing or wrong"),
    ],
)
def test_samples_that_are_no_radiograph(name: str, reason: str) -> None:
    with pytest.raises(UnreadableImageError, match=reason):
        read_dicom(sample(name))


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"PixelData": None}, "no pixels"),
    ({"NumberOfFrames": 2, "PixelData": b"\0" * 512}, "2 frames where a radiograph has one"),
    ({"PhotometricInterpretation": PATIENT}, "its pixels are not grey"),
    ({"PhotometricInterpretation": None}, "the tags that describe its pixels are missing or wrong"),
    ({"Rows": None}, "the tags that describe its pixels are missing or wrong"),
    ({"PixelData": b"\0" * 100}, "truncated or cannot be decoded"),
    ({"Columns": 15}, "its pixels are 256 bytes, not 240"),
    ({"PixelData": b"\0" * 256 + b"12"}, "its pixels are 258 bytes, not 256"),
    ({"Rows": 60000, "Columns": 60000}, "60000 x 60000 pixels is over Pillow's limit"),
    ({"WindowCenter": 5, "WindowWidth": 0.5}, "its grey-value tags are invalid"),
    ({"WindowCenter": 5, "WindowWidth": 9, "VOILUTFunction": PATIENT}, "its grey-value tags"),
    ({"RescaleSlope": 0, "RescaleIntercept": 5}, "its grey-value tags are invalid"),
    ({"RescaleSlope": "nan", "RescaleIntercept": 0}, "its RescaleSlope is not a finite number"),
    ({"RescaleSlope": 1, "RescaleIntercept": "-inf"}, "its RescaleIntercept is not a finite number"),
    ({"WindowCenter": [5, 6], "WindowWidth": ["9", "nan"]}, "its WindowWidth is not a finite number"),
    ({"RescaleSlope": "1e308", "RescaleIntercept": 0}, "its grey-value tags are invalid"),
]


@pytest.mark.parametrize(("tags", "reason"), WRONG, ids=[reason for _, reason in WRONG])
def test_one_line_for_what_is_wrong(tmp_path: Path, tags: dict[str, Any], reason: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns about the tags written
        path = write_dicom(tmp_path / "a.dcm", ramp(8), **tags)
    with pytest.raises(UnreadableImageError, match=reason) as caught:
        read_dicom(path)
    assert "\n" not in str(caught.value) and "SECRET" not in str(caught.value)


def test_values_in_other_bits_are_refused_and_zeros_behind_the_pixels_are_not(tmp_path: Path) -> None:
    dataset = pydicom.dcmread(write_dicom(tmp_path / "a.dcm", ramp(12), BitsStored=12))
    shown = read_dicom(tmp_path / "a.dcm")
    dataset.PixelData += b"\0" * 100
    dataset.save_as(tmp_path / "a.dcm")
    assert np.array_equal(read_dicom(tmp_path / "a.dcm"), shown)
    dataset.HighBit = 15
    dataset.save_as(tmp_path / "a.dcm")
    with pytest.raises(UnreadableImageError, match="its values end at bit 15, not 11"):
        read_dicom(tmp_path / "a.dcm")


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.9, 0.98])
@pytest.mark.parametrize("packed", [False, True])
def test_a_file_cut_off_anywhere(tmp_path: Path, packed: bool, keep: float) -> None:
    pixels = smooth(0)
    options = {"frame": encoded(pixels, "JPEG"), "syntax": JPEGBaseline8Bit} if packed else {}
    path = write_dicom(tmp_path / "a.dcm", pixels, **options)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(UnreadableImageError):
        read_dicom(path)


def test_a_compressed_frame_cut_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pixels = smooth(0, 256, 256)
    jpeg = encoded(pixels, "JPEG")
    path = write_dicom(tmp_path / "a.dcm", pixels, frame=jpeg[: len(jpeg) // 2], syntax=JPEGBaseline8Bit)
    with pytest.raises(UnreadableImageError, match=r"truncated or cannot be decoded \(JPEG Baseline \(Process 1\)"):
        read_dicom(path)
    assert not caplog.records, "a traceback may quote a patient's tags"


def test_what_is_no_dicom_file(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    for name, reason in (("a.png", "not a DICOM file"), ("none.dcm", "no such file"), (".", "not a regular file")):
        with pytest.raises(UnreadableImageError, match=reason):
            read_dicom(tmp_path / name)
    (tmp_path / "empty.dcm").touch()
    with pytest.raises(UnreadableImageError, match="not a DICOM file|broken DICOM"):
        read_dicom(tmp_path / "empty.dcm")
