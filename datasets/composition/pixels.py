"""Cut an object out of its photograph and put it on a background."""

from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from common.errors import UserError
from common.seeds import stable_seed
from datasets.composition.files import ObjectFile, without_ending
from datasets.composition.plan import PlannedImage
from datasets.formats.images import read_grey, read_image, read_rgba
from datasets.readers.files import check_mask_size

HALF = 128
"""Least alpha of a pixel of the object: 0.5 of 255."""
BORDER = 0.05
"""Width of the border around the object that is pasted with it, for soft edges; fraction of its longer side."""
BICUBIC = Image.Resampling.BICUBIC


@dataclass(frozen=True)
class PixelOptions:
    """How an image is composed."""

    placement: Literal["centred", "random", "original"]
    """original: as in the object's photograph, whose size the image has; size and object_size do not matter."""
    size: int
    """Side of the square image, pixels."""
    object_size: tuple[float, float]
    """Range of the object's longer side, fraction of the image's side."""
    max_upscale: float
    """Most that an object or background is enlarged."""
    seed: int


@dataclass(frozen=True)
class ComposedImage:
    """An image with the mask of its object."""

    image: np.ndarray
    """[H, W, 3] uint8."""
    mask: np.ndarray
    """[H, W] bool: alpha of at least 0.5."""
    is_smaller: bool
    """Whether the object is smaller than drawn, because its photograph is too small."""


def compose(planned: PlannedImage, options: PixelOptions) -> ComposedImage:
    """The pixels of one image, a function of the two files, the options and the names.

    Raises UserError for unreadable files, an object without mask, and a background that is too small.
    """
    cutout = read_cutout(planned.object)
    if options.placement == "original":
        size, layer, is_smaller = cutout.size, cutout, False
    else:
        size = (options.size, options.size)
        layer, is_smaller = _placed(cutout, planned, options)
    canvas = _cover(planned, size, options)
    alpha = layer.getchannel("A")
    canvas.paste(layer.convert("RGB"), mask=alpha)
    mask = np.asarray(alpha) >= HALF
    if not mask.any():
        raise UserError(f"nothing is left of the object of {planned.object.path} at its size; use a larger one")
    return ComposedImage(np.array(canvas), mask, is_smaller)


def read_cutout(source: ObjectFile) -> Image.Image:
    """The photograph as RGBA. Raises UserError where nothing or everything is object."""
    if source.mask is None:
        pixels, file = read_rgba(source.path), source.path
        if (pixels[..., 3] == 255).all():
            raise UserError(f"{file} has no mask: it has no transparent pixel; give --masks or exclude it")
    else:
        rgb, file = read_image(source.path, rotate=source.rotate), source.mask
        if not file.is_file():
            raise UserError(f"{file} is missing; every object needs a mask, restore it or exclude {source.name}")
        alpha = _soft(read_grey(file))
        check_mask_size(alpha, file, rgb, source.path)
        pixels = np.dstack([rgb, alpha])
        if (alpha == 255).all():
            raise UserError(f"{file}: the mask covers the whole image; correct it or exclude the object")
    if not (pixels[..., 3] >= HALF).any():
        raise UserError(f"{file}: the mask is empty (no pixel of at least 50 %); correct it or exclude the object")
    return Image.fromarray(pixels)


def _soft(grey: np.ndarray) -> np.ndarray:
    """Alpha of a mask: a mask of 0 and one other value is hard, whatever the value; else it is the grey value."""
    values = np.unique(grey)
    return (grey > 0).astype(np.uint8) * 255 if len(values) == 2 and values[0] == 0 else grey


def _placed(cutout: Image.Image, planned: PlannedImage, options: PixelOptions) -> tuple[Image.Image, bool]:
    """The object on a transparent square, in a size and at a place that depend on its name and pose."""
    rng = np.random.default_rng(stable_seed("pose", without_ending(planned.object.name), planned.pose, options.seed))
    rows, columns = (np.flatnonzero((np.asarray(cutout)[..., 3] >= HALF).any(axis)) for axis in (1, 0))
    left, top, right, bottom = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    longer = max(right - left, bottom - top)
    wanted = rng.uniform(*options.object_size) * options.size / longer
    scale = min(wanted, options.max_upscale)
    width, height = (min(options.size, max(1, round(side * scale))) for side in (right - left, bottom - top))
    at = rng.random(2) if options.placement == "random" else np.array([0.5, 0.5])
    x, y = (int(u * (options.size - side + 1)) for u, side in zip(at, (width, height), strict=True))

    border = ceil(BORDER * max(width, height))
    by_x, by_y = border * (right - left) / width, border * (bottom - top) / height
    room = ceil(max(by_x, by_y))
    padded = ImageOps.expand(cutout, room, fill=(0, 0, 0, 0))
    box = (left - by_x + room, top - by_y + room, right + by_x + room, bottom + by_y + room)
    # Pillow weights colours by alpha here, so what was behind the object does not bleed into its edge.
    resized = padded.resize((width + 2 * border, height + 2 * border), BICUBIC, box=box)
    layer = Image.new("RGBA", (options.size, options.size))
    layer.paste(resized, (x - border, y - border))
    return layer, scale < wanted


def _cover(planned: PlannedImage, size: tuple[int, int], options: PixelOptions) -> Image.Image:
    """The largest crop of the background with the image's aspect ratio, at a random place, resized to it."""
    path = planned.background.path
    background = Image.fromarray(read_image(path))
    scale = enlargement(background.size, size)
    if scale > options.max_upscale:
        raise too_small(path, background.size, size)
    names = without_ending(planned.background.name), without_ending(planned.object.name)
    rng = np.random.default_rng(stable_seed("crop", *names, planned.pose, options.seed))
    width, height = (min(side / scale, of) for side, of in zip(size, background.size, strict=True))
    left, top = rng.random(2) * (background.width - width, background.height - height)
    box = (left, top, min(left + width, background.width), min(top + height, background.height))
    return background.resize(size, BICUBIC, box=box)


def enlargement(size: tuple[int, int], target: tuple[int, int]) -> float:
    """The factor by which an image of `size` (width, height) is resized to cover `target`."""
    return max(target[0] / size[0], target[1] / size[1])


def too_small(path: Path, size: tuple[int, int], target: tuple[int, int]) -> UserError:
    """The error for a background of `size` in images of `target`, both (width, height)."""
    sizes = (
        f"{size[0]} x {size[1]} pixels, enlarged {enlargement(size, target):.2f} times for {target[0]} x {target[1]}"
    )
    return UserError(f"background {path}: {sizes}; exclude it, make --size smaller or --max-upscale larger")
