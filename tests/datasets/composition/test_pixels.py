"""The pixels of composed images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from datasets.composition.files import BackgroundFile, ObjectFile
from datasets.composition.pixels import ComposedImage, PixelOptions, compose
from datasets.composition.plan import PlannedImage
from tests.datasets.composition.photographs import disc, photograph, save


def options(
    placement: str = "random", size: int = 64, low: float = 0.4, high: float = 0.8, most: float = 2
) -> PixelOptions:
    return PixelOptions(placement, size, (low, high), most, seed=0)  # type: ignore[arg-type]


def planned(image: Path, background: Path, mask: Path | None = None, pose: int = 0) -> PlannedImage:
    source = ObjectFile("a/a.png", image, mask, "a", 0, None)
    return PlannedImage("a/a", source, BackgroundFile("b.png", background, 0, None, "b.png"), "train", pose)


def red_disc(folder: Path, hidden: tuple[int, int, int] = (0, 255, 0), radius: float = 18) -> Path:
    """A red disc; where it is transparent, the file has the colour `hidden`."""
    alpha = disc(radius=radius)
    pixels = np.where(alpha[..., None] > 0, (255, 0, 0), hidden)
    return save(folder / "disc.png", np.dstack([pixels, alpha * 255]).astype(np.uint8))


def blue(folder: Path, width: int = 80, height: int = 60) -> Path:
    return save(folder / "blue.png", np.full((height, width, 3), (0, 0, 255), np.uint8))


def extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, width, height of the object."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1


def test_an_object_is_blended_into_its_background(tmp_path: Path) -> None:
    """Every pixel is alpha * red + (1 - alpha) * blue; hidden colours and the photograph's background never show."""
    image = planned(red_disc(tmp_path), blue(tmp_path))
    composed = compose(image, options())
    alpha = composed.image[..., 0] / 255
    assert composed.image.shape == (64, 64, 3) and composed.image.dtype == np.uint8
    assert composed.image[..., 1].max() <= 1
    assert np.abs(composed.image[..., 2] / 255 - (1 - alpha)).max() < 0.01
    assert np.array_equal(composed.mask, composed.image[..., 0] >= 128)
    assert ((alpha > 0.1) & (alpha < 0.9)).any(), "the edge is soft"
    other = compose(planned(red_disc(tmp_path, hidden=(255, 255, 255)), blue(tmp_path)), options())
    assert np.array_equal(other.image, composed.image)


def test_size_and_place(tmp_path: Path) -> None:
    image, background = red_disc(tmp_path), blue(tmp_path)
    found = [extent(compose(planned(image, background, pose=pose), options()).mask) for pose in range(40)]
    sizes = [max(width, height) for _, _, width, height in found]
    assert min(sizes) >= 0.4 * 64 - 2 and max(sizes) <= 0.8 * 64 + 1 and max(sizes) > 1.6 * min(sizes)
    assert all(left >= 0 and top >= 0 and left + w <= 64 and top + h <= 64 for left, top, w, h in found)
    assert len({(left, top) for left, top, *_ in found}) > 30
    for left, top, width, height in (extent(compose(planned(image, background), options(placement="centred")).mask),):
        assert abs(left + width / 2 - 32) <= 1 and abs(top + height / 2 - 32) <= 1


def test_one_size(tmp_path: Path) -> None:
    fixed = options(low=0.5, high=0.5)
    image, background = red_disc(tmp_path), blue(tmp_path)
    sizes = [extent(compose(planned(image, background, pose=pose), fixed).mask)[2:] for pose in range(5)]
    assert all(abs(side - 32) <= 1 for size in sizes for side in size)


def test_the_object_fills_the_image(tmp_path: Path) -> None:
    composed = compose(planned(red_disc(tmp_path), blue(tmp_path)), options(low=1, high=1))
    left, top, width, height = extent(composed.mask)
    assert left <= 1 and top <= 1 and width >= 62 and height >= 62


def test_an_object_is_not_enlarged_further(tmp_path: Path) -> None:
    """A disc of 12 pixels is at most 24 wide."""
    composed = compose(planned(red_disc(tmp_path, radius=6), blue(tmp_path)), options(low=0.8, high=0.8))
    assert composed.is_smaller and abs(extent(composed.mask)[2] - 24) <= 1
    assert not compose(planned(red_disc(tmp_path), blue(tmp_path)), options()).is_smaller


@pytest.mark.parametrize(("width", "height"), [(32, 200), (31, 200)])
def test_a_background_is_not_enlarged_further(width: int, height: int, tmp_path: Path) -> None:
    image = planned(red_disc(tmp_path), blue(tmp_path, width, height))
    if width * 2 >= 64:
        compose(image, options())
        return
    with pytest.raises(UserError, match=r"blue\.png: 31 x 200 pixels, enlarged 2\.06 times for 64 x 64; exclude it"):
        compose(image, options())


def test_a_background_keeps_its_aspect_ratio(tmp_path: Path) -> None:
    """Of a wide ramp a square is cut: its slope is the same in every crop, and crops differ."""
    ramp = np.broadcast_to(np.arange(240)[:, None], (64, 240, 3)).astype(np.uint8)
    background = save(tmp_path / "ramp.png", ramp)
    object_ = red_disc(tmp_path, radius=3)
    firsts = []
    for pose in range(6):
        composed = compose(planned(object_, background, pose=pose), options("centred", low=0.1, high=0.1))
        row = composed.image[0, :, 1]
        assert np.ptp(row) in (62, 63, 64)
        firsts.append(row[0])
    assert len(set(firsts)) > 3


def test_original_placement(tmp_path: Path) -> None:
    """The photograph's size and pixels; the background around."""
    pixels, alpha = photograph(1), disc(centre=(30, 20), radius=12)
    image, mask = save(tmp_path / "a.png", pixels), save(tmp_path / "m.png", (alpha * 255).astype(np.uint8))
    composed = compose(planned(image, blue(tmp_path), mask), options(placement="original", size=999))
    assert np.array_equal(composed.mask, (alpha * 255).astype(np.uint8) >= 128)
    assert np.array_equal(composed.image[alpha == 1], pixels[alpha == 1])
    assert (composed.image[alpha == 0] == (0, 0, 255)).all()


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 7), (0, 255)])
def test_hard_masks_of_any_value(low: int, high: int, tmp_path: Path) -> None:
    image = save(tmp_path / "a.png", photograph(1))
    mask = save(tmp_path / "m.png", np.where(disc() > 0.5, high, low).astype(np.uint8))
    composed = compose(planned(image, blue(tmp_path), mask), options(placement="original"))
    assert np.array_equal(composed.mask, disc() > 0.5)


def test_a_soft_mask_is_alpha(tmp_path: Path) -> None:
    """Grey values as in CUB's segmentations: 0.2 is no object, 0.6 is."""
    image = save(tmp_path / "a.png", np.full((48, 48, 3), (255, 0, 0), np.uint8))
    grey = np.zeros((48, 48), np.uint8)
    grey[:16], grey[16:32] = 51, 153
    composed = compose(planned(image, blue(tmp_path), save(tmp_path / "m.png", grey)), options(placement="original"))
    assert np.array_equal(composed.mask, grey == 153)
    assert [composed.image[row, 0, 0] for row in (0, 20, 40)] == [51, 153, 0]


def broken(kind: str, folder: Path) -> ComposedImage:
    """An attempt to compose with one of the masks below."""
    image = save(folder / "a.png", photograph(1))
    masks = {
        "empty": np.zeros((48, 48), np.uint8),
        "faint": np.tile(np.arange(48, dtype=np.uint8), (48, 1)),
        "full": np.full((48, 48), 255, np.uint8),
        "small": np.eye(20, dtype=np.uint8),
    }
    mask = save(folder / "m.png", masks[kind]) if kind in masks else folder / "m.png" if kind == "missing" else None
    return compose(planned(image, blue(folder), mask), options())


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty", r"m\.png: the mask is empty"),
        ("faint", r"m\.png: the mask is empty"),
        ("full", r"m\.png: the mask covers the whole image"),
        ("small", r"m\.png is 20 x 20 pixels but .*a\.png is 48 x 48"),
        ("missing", r"m\.png is missing; every object needs a mask"),
        ("opaque", r"a\.png has no mask: it has no transparent pixel"),
    ],
)
def test_masks_that_cannot_be_used(kind: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        broken(kind, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_rotated_photograph_and_its_mask(tmp_path: Path) -> None:
    """EXIF orientation is applied to both."""
    pixels, mask = np.zeros((48, 60, 3), np.uint8), np.zeros((60, 48), np.uint8)
    mask[10:30, 5:25] = 255
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=turned)
    path = save(tmp_path / "m.png", mask)
    composed = compose(planned(tmp_path / "a.png", blue(tmp_path), path), options(placement="original"))
    assert np.array_equal(composed.mask, mask == 255)
