"""Views of one image: its parts, the patches that stage 2 sees, the true object, a heat map.

The views take an image [H, W, 3] uint8 and return a new one of the same size.
"""

from collections.abc import Sequence
from typing import TypeAlias

import matplotlib
import numpy as np
from PIL import Image
from PIL.ImageColor import getrgb
from torch import Tensor

from report.style import HIDDEN, part_colour

Array: TypeAlias = np.ndarray | Tensor


def as_array(values: Array) -> np.ndarray:
    """A tensor of any device and dtype, or an array, as an array; floating-point tensors as float32."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.float() if values.is_floating_point() else values).numpy()
    return values


def denormalise(image: Array, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """A network input [3, H, W] as an image; `mean`, `std`: its normalisation per channel, for values in [0, 1]."""
    pixels = as_array(image).transpose(1, 2, 0) * np.asarray(std) + np.asarray(mean)
    return (np.nan_to_num(pixels) * 255).round().clip(0, 255).astype(np.uint8)


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The image at `size` (height, width), with Lanczos interpolation."""
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.LANCZOS))


def resize_shorter(image: np.ndarray, side: int) -> np.ndarray:
    """The image with its shorter side at `side` pixels."""
    height, width = image.shape[:2]
    scale = side / min(height, width)
    return resize(image, (round(height * scale), round(width * scale)))


def enlarge(grid: Array, size: tuple[int, int]) -> np.ndarray:
    """[H, W]: grid [h, w] enlarged with nearest-neighbour interpolation; H, W need not be multiples of h, w."""
    cells = as_array(grid)
    rows = np.arange(size[0]) * cells.shape[0] // size[0]
    columns = np.arange(size[1]) * cells.shape[1] // size[1]
    return cells[rows[:, None], columns[None, :]]


def part_overlay(
    image: np.ndarray, maps: Array, mask: Array | None = None, opacity: float = 0.65, background: float = 0.3
) -> np.ndarray:
    """Each patch in the colour of its strongest part, over a grey image, with thin white edges between parts.

    maps [K+1, h, w], last = background; mask [h, w] bool: hidden patches count as background. Below a mask of pixels
    [H, W] the maps are interpolated. `background` is the brightness of background patches: 1 leaves them as they are, 0
    makes them black.
    """
    part_maps = as_array(maps)
    parts = part_maps.shape[0] - 1
    label = part_maps.argmax(axis=0)
    if mask is not None:
        kept = as_array(mask).astype(bool)
        if kept.shape != label.shape:  # pixels: a visible one belongs to a part, whatever its patch does
            label = _bilinear(part_maps[:-1], kept.shape).argmax(axis=0)
        label = np.where(kept, label, parts)
    colours = np.array([getrgb(part_colour(part)) for part in range(parts)] + [(0, 0, 0)], dtype=np.float32)
    strength = np.array([opacity] * parts + [1 - background], dtype=np.float32)
    big = enlarge(label, image.shape[:2])
    # Grey below the parts: a yellow part over a red bird would look like an orange part.
    base = np.where((big < parts)[..., None], _grey(image), image)
    mixed = _blend(base, colours[big], strength[big])
    mixed[_edges(big)] = 255
    return mixed


def mask_view(image: np.ndarray, mask: Array) -> np.ndarray:
    """The image with the patches outside mask [h, w] in plain grey: what stage 2 sees, or the true object alone."""
    kept = enlarge(mask, image.shape[:2]).astype(bool)
    return np.where(kept[..., None], image, np.array(getrgb(HIDDEN), dtype=np.uint8))


def removal_view(image: np.ndarray, maps: Array, before: Array, after: Array) -> np.ndarray:
    """`mask_view` of `after` [h, w]; patches that only `before` [h, w] shows are in the colour of their part.

    maps [K+1, h, w], last = background: the strength of each part. `before` and `after` may be masks of pixels.
    """
    gone = as_array(before).astype(bool) & ~as_array(after).astype(bool)
    here = enlarge(gone, image.shape[:2])
    return np.where(here[..., None], part_overlay(image, maps, gone), mask_view(image, after))


def heat_overlay(
    image: np.ndarray, heat: Array, opacity: float = 0.6, limits: tuple[float, float] | None = None
) -> np.ndarray:
    """A heat map [h, w] over the image in grey, enlarged bilinearly.

    `limits`: the values at both ends of the colours; None: the map's minimum and maximum. A constant map is then shown
    as all minimum.
    """
    values = np.nan_to_num(as_array(heat).astype(np.float32))
    low, high = limits or (float(values.min()), float(values.max()))
    unit = (values - low) / ((high - low) or 1.0)
    smooth = _bilinear(unit[None], image.shape[:2])[0].clip(0, 1)
    return _blend(_grey(image), heat_colours(smooth), np.full(smooth.shape, opacity))


def heat_colours(unit: np.ndarray) -> np.ndarray:
    """The colours [H, W, 3], 0 to 255, not rounded, of values [H, W] in [0, 1]."""
    colours: np.ndarray = matplotlib.colormaps["inferno"](unit)[..., :3] * 255
    return colours


def _bilinear(maps: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Maps [C, h, w] float32 enlarged to [C, H, W]."""
    large = (Image.fromarray(m).resize((size[1], size[0]), Image.Resampling.BILINEAR) for m in maps)
    return np.stack([np.asarray(m) for m in large])


def _grey(image: np.ndarray) -> np.ndarray:
    return np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2)


def _blend(image: np.ndarray, colour: np.ndarray, strength: np.ndarray) -> np.ndarray:
    alpha = strength[..., None]
    return (image * (1 - alpha) + colour * alpha).round().clip(0, 255).astype(np.uint8)


def _edges(labels: np.ndarray) -> np.ndarray:
    """[H, W] bool: pixels whose right or lower neighbour has another label."""
    edges = np.zeros(labels.shape, dtype=bool)
    edges[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edges[:-1] |= labels[:-1] != labels[1:]
    return edges
