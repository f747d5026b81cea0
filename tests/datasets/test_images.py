"""Every kind of image that Pillow reads, made with Pillow."""

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from common.errors import UserError
from datasets.formats.images import UnreadableImageError, read_image, read_mask

RAMP = np.tile(np.arange(0, 256, 16, dtype=np.uint8), (12, 1))  # [12, 16]
RGB = np.stack([RAMP, RAMP[:, ::-1], np.full_like(RAMP, 90)], axis=2)


def write(folder: Path, picture: Image.Image, suffix: str = ".png", **options: object) -> Path:
    path = folder / f"image{suffix}"
    picture.save(path, **options)  # type: ignore[arg-type]
    return path


def test_rgb(tmp_path: Path) -> None:
    image = read_image(write(tmp_path, Image.fromarray(RGB)))
    assert image.dtype == np.uint8 and np.array_equal(image, RGB)


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grey(tmp_path: Path, mode: str) -> None:
    image = read_image(write(tmp_path, Image.fromarray(RAMP).convert(mode)))
    expected = RAMP if mode != "1" else np.asarray(Image.fromarray(RAMP).convert("1")) * np.uint8(255)
    assert np.array_equal(image, np.repeat(expected[..., None], 3, 2))


def test_cmyk_jpeg(tmp_path: Path) -> None:
    image = read_image(write(tmp_path, Image.new("CMYK", (16, 12), (0, 255, 255, 0)), ".jpg"))
    assert image.shape == (12, 16, 3)
    assert np.abs(image.astype(int) - (255, 0, 0)).max() < 12


def test_transparent_parts_are_white(tmp_path: Path) -> None:
    alpha = np.zeros((12, 16), np.uint8)
    alpha[:, 8:] = 255
    image = read_image(write(tmp_path, Image.fromarray(np.dstack([RGB, alpha]))))
    assert (image[:, :8] == 255).all() and np.array_equal(image[:, 8:], RGB[:, 8:])
    half = read_image(write(tmp_path, Image.fromarray(np.dstack([RAMP, np.full_like(RAMP, 128)]), "LA")))
    assert abs(int(half[0, 0, 0]) - 127) <= 1


def palette_image() -> Image.Image:
    picture = Image.fromarray(np.arange(4, dtype=np.uint8).repeat(4).reshape(4, 4))
    picture = picture.convert("P")
    picture.putdata([0, 1, 2, 3] * 4)
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    return picture


def test_palette(tmp_path: Path) -> None:
    image = read_image(write(tmp_path, palette_image()))
    assert image[0].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]]


def test_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    image = read_image(write(tmp_path, palette_image(), transparency=1))
    assert image[0].tolist() == [[255, 0, 0], [255, 255, 255], [0, 0, 255], [9, 9, 9]]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_scaled(tmp_path: Path, suffix: str) -> None:
    deep = np.array([[0, 128, 256, 300, 32896, 65535]], np.uint16)
    image = read_image(write(tmp_path, Image.fromarray(deep), suffix))
    assert image[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]


def test_floating_point(tmp_path: Path) -> None:
    unit = np.array([[0.0, 0.5, 1.0]], np.float32)
    assert read_image(write(tmp_path, Image.fromarray(unit), ".tif"))[0, :, 0].tolist() == [0, 128, 255]
    for wrong in (unit * 7, unit - 0.1, unit * np.nan):
        with pytest.raises(UnreadableImageError, match="its values run from"):
            read_image(write(tmp_path, Image.fromarray(wrong), ".tif"))


@pytest.mark.parametrize(("orientation", "turn"), [(3, 2), (6, 3), (8, 1)])
def test_exif_orientation(tmp_path: Path, orientation: int, turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = write(tmp_path, Image.fromarray(RGB), exif=exif)
    assert np.array_equal(read_image(path), np.rot90(RGB, turn))
    assert np.array_equal(read_image(path, rotate=False), RGB)
    assert np.array_equal(read_mask(path), np.rot90(np.asarray(Image.fromarray(RGB).convert("L")) > 0, turn))


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGB", "I;16"])
def test_masks(tmp_path: Path, mode: str) -> None:
    mask = RAMP > 100
    if mode == "I;16":
        picture = Image.fromarray(mask.astype(np.uint16))  # 1 of 65535: faint, but set
    else:
        picture = Image.fromarray(mask.astype(np.uint8) * 255).convert(mode)
    found = read_mask(write(tmp_path, picture))
    assert found.dtype == bool and np.array_equal(found, mask)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".gif", ".tif", ".bmp", ".webp"])
@pytest.mark.parametrize("read", [read_image, read_mask])
def test_truncated(tmp_path: Path, suffix: str, read: Callable[[Path], np.ndarray]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = write(tmp_path, Image.fromarray(noise), suffix)
    truncate(path)
    with pytest.raises(UnreadableImageError) as caught:
        read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, b"\xff\xd8\xff\xe0 a lie"]
)
def test_not_a_image(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    with pytest.raises(UnreadableImageError, match=r"image\.jpg"):
        read_image(path)


def test_missing_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImageError, match="no such file"):
        read_image(tmp_path / "none.jpg")
    with pytest.raises(UnreadableImageError, match="cannot read image"):
        read_image(tmp_path)


@pytest.mark.parametrize("limit", [100, 50])
def test_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    path = write(tmp_path, Image.fromarray(RGB))  # 192 pixels: over the limit, and over twice the limit
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(UnreadableImageError, match="limit"):
            read_image(path)


def test_the_error_survives_a_process_boundary() -> None:
    error = UnreadableImageError("a/b.jpg", "broken")
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, UserError) and str(again) == str(error) and again.path == "a/b.jpg"


def test_pillow_stays_strict() -> None:
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
