"""Cover an image cell by cell, in the order of a heat map, and run the model after every step.

A cell is a pixel, or a square of `patch` x `patch` pixels that is covered as a whole.

Shape legend: M image and order pairs, S steps, h x w cells, H x W pixels, C classes.
"""

from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from common.errors import UserError
from common.maps import to_pixels
from common.transfer import on_device

Colour = tuple[float, float, float]
Fill = Literal["grey", "black", "mean", "blur"]
"""What replaces covered pixels: raw 0.5, raw 0, the mean colour of the normalisation (0 after it), or the image blurred
by a Gaussian of 11 x 11 pixels and sigma 5 (RISE)."""


def rank_cells(maps: Tensor) -> Tensor:
    """Rank of every cell of maps [M, h, w] from most relevant (0) to least, [M, h, w] int64.

    Ties are ordered by row-major position. nan ranks first, so callers handle nan maps before.
    """
    flat = maps.flatten(1)
    order = flat.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(flat.shape[1], device=maps.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).view(maps.shape)


def on_grid(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Maps [B, h', w'] on another grid, [B, h, w] fp32 (fp64 stays): averaged down or bilinear up."""
    maps = maps if maps.dtype == torch.float64 else maps.float()
    if maps.shape[1:] == grid:
        return maps
    if maps.shape[1] < grid[0] or maps.shape[2] < grid[1]:
        return to_pixels(maps, grid)
    return F.adaptive_avg_pool2d(maps, grid)


def enlarge(cells: Tensor, size: tuple[int, int]) -> Tensor:
    """Cells [M, h, w] as pixels [M, H, W], each cell a block; H, W must be multiples of h, w."""
    tall, wide = size[0] // cells.shape[1], size[1] // cells.shape[2]
    return cells.repeat_interleave(tall, 1).repeat_interleave(wide, 2)


def cell_grid(images: Tensor, patch: int) -> tuple[int, int]:
    """(h, w) cells of images [..., H, W]. Raises UserError where `patch` does not divide the size."""
    height, width = images.shape[-2:]
    if height % patch or width % patch:
        raise UserError(f"metric option patch={patch} does not divide images of {height}x{width} pixels")
    return height // patch, width // patch


def blur(images: Tensor) -> Tensor:
    """The images [B, 3, H, W] blurred as in RISE."""
    return cast(Tensor, gaussian_blur(images, kernel_size=[11, 11], sigma=[5.0, 5.0]))


@dataclass(frozen=True)
class Removal:
    """How the pixels of an image are covered step by step."""

    mean: Colour
    std: Colour
    """The normalisation of the images."""
    fill: Fill
    steps: int = 10
    """Number of equal steps from the clean image to the fully covered one."""
    patch: int = 1
    """Side of a cell in pixels."""
    chunk: int | None = None
    """Images per call of the model; None: see `metrics.types.Explanation.predict_all`."""

    def __post_init__(self) -> None:
        if self.fill not in get_args(Fill):
            raise UserError(f"metric option fill={self.fill!r} is unknown; known: {', '.join(get_args(Fill))}")
        for name, least in {"steps": 2, "patch": 1, "chunk": 1}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"metric option {name}={value} must be at least {least}")

    def cover(self, images: Tensor) -> Tensor:
        """The pixels that replace covered ones of images [B, 3, H, W]; same shape."""
        if self.fill == "blur":
            return blur(images)
        mean, std = (on_device(colour, images.device, images.dtype) for colour in (self.mean, self.std))
        raw = {"grey": torch.full_like(mean, 0.5), "black": torch.zeros_like(mean), "mean": mean}[self.fill]
        return ((raw - mean) / std)[:, None, None].expand_as(images)

    def cells(self, maps: Tensor, images: Tensor) -> Tensor:
        """Maps [B, h', w'] on the cells of images [B, 3, H, W]: [B, h, w]."""
        return on_grid(maps, cell_grid(images, self.patch))

    def counts(self, cells: int) -> list[int]:
        """How many of the cells are covered after each of the S = steps - 1 inner steps: floor(cells * s / steps)."""
        return [cells * step // self.steps for step in range(1, self.steps)]

    def covered(self, rank: Tensor) -> Tensor:
        """The cells that are covered after each inner step, [M, S, h, w] bool, for rank [M, h, w] from `rank_cells`."""
        counts = on_device(self.counts(rank[0].numel()), rank.device)
        return rank[:, None] < counts[:, None, None]


@dataclass(frozen=True)
class CoveredImages:
    """M images after each of S steps, as `metrics.types.Images`: image m after step s is number m * S + s.

    They are made when they are read. Every step starts from the clean image.
    """

    images: Tensor
    """[M, 3, H, W]"""
    cover: Tensor
    """[M, 3, H, W]: the pixels of covered cells."""
    covered: Tensor
    """[M, S, h, w] bool: the cells that are covered after each step."""

    def __len__(self) -> int:
        return self.covered.shape[0] * self.covered.shape[1]

    def __getitem__(self, piece: slice, /) -> Tensor:
        number = torch.arange(*piece.indices(len(self)), device=self.images.device)
        image, step = number // self.covered.shape[1], number % self.covered.shape[1]
        hidden = enlarge(self.covered[image, step], (self.images.shape[2], self.images.shape[3]))
        return torch.where(hidden[:, None], self.cover[image], self.images[image])
