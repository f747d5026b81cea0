"""The random affine view of the equivariance term: draw it, warp images with it, and warp part maps back.

Angles are in degrees, clockwise; shifts are fractions of the image width and height, right and down positive. The image
is scaled, sheared and rotated about its centre, then shifted, like torchvision's `affine` with the same parameters.

Two forms. Default: one view per image, one bilinear inverse, and a mask of the positions that stayed in view. Published
(iFAM, PDiscoFormer): one view for the whole batch with whole-pixel shifts, undone by two nearest-neighbour resamplings;
positions out of view are zeros.
"""

import math
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError
from common.processes import own_rows
from losses.config import EquivarianceConfig

IN_VIEW = 1 - 1e-3
"""A position is in view if a warped image of ones is above this there: 1 minus a margin for rounding."""


@dataclass(frozen=True)
class AffineView:
    """One affine map per image; all tensors [B]."""

    angle: Tensor
    """Degrees, clockwise."""
    shift_x: Tensor
    """Fraction of the width, right positive."""
    shift_y: Tensor
    """Fraction of the height, down positive."""
    scale: Tensor
    size_hw: tuple[int, int]
    """Image size in pixels. Rotations are rotations of these pixels, also for maps on the patch grid."""
    padding: Literal["zeros", "reflection"] = "zeros"
    published: bool = False
    """One transform for all images, and the published inverse."""
    shear: tuple[Tensor, Tensor] | None = None
    """Along x and along y, degrees, [B] each; None: no shear."""

    def __len__(self) -> int:
        return len(self.angle)


def num_views(batch: int, config: EquivarianceConfig) -> int:
    """Number of images at the start of a batch that get a second view."""
    return min(batch, config.images) if config.images > 0 else batch


def draw_view(
    batch: int,
    size_hw: tuple[int, int],
    config: EquivarianceConfig,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> AffineView:
    """Angle ~ U(-max_angle, max_angle), shifts ~ U(-max_shift, max_shift), scale ~ U(scale), shears ~ U(-max_shear,
    max_shear), one of each per image.

    Drawn on the device of `generator`, or from the global generator of `device` (default: CPU), without synchronising
    the device. With `config.published`, one draw on the CPU in the published order, see `_draw_published`.
    """
    if config.published:
        return _draw_published(batch, size_hw, config, generator)
    where = generator.device if generator is not None else device
    # [4, B] in [0, 1); with several processes, each takes its images' columns of one common draw.
    unit = own_rows(lambda count: torch.rand(4, count, generator=generator, device=where), batch, dim=1)
    low, high = config.scale
    shift_y = config.max_shift if config.max_shift_y is None else config.max_shift_y
    shear = None
    if any(config.max_shear):
        more = own_rows(lambda count: torch.rand(2, count, generator=generator, device=where), batch, dim=1)
        shear = (2 * more[0] - 1) * config.max_shear[0], (2 * more[1] - 1) * config.max_shear[1]
    return AffineView(
        angle=(2 * unit[0] - 1) * config.max_angle,
        shift_x=(2 * unit[1] - 1) * config.max_shift,
        shift_y=(2 * unit[2] - 1) * shift_y,
        scale=low + (high - low) * unit[3],
        size_hw=size_hw,
        padding=config.padding,
        shear=shear,
    )


def _draw_published(
    batch: int, size_hw: tuple[int, int], config: EquivarianceConfig, generator: torch.Generator | None
) -> AffineView:
    """One CPU draw for the whole batch, in the order angle, x shift, y shift, scale; whole-pixel shifts.

    As published, width and height are exchanged: the largest x shift is `max_shift` of the height, the largest y shift
    `max_shift_y` of the width. Raises UserError for a shear or a padding other than zeros, ValueError for a generator
    that is not on the CPU.
    """
    if any(config.max_shear):
        raise UserError(
            "loss.equivariance.max_shear must be 0 with loss.equivariance.published, whose inverse has none"
        )
    if config.padding != "zeros":
        raise UserError("loss.equivariance.padding must be zeros with loss.equivariance.published")
    if generator is not None and generator.device.type != "cpu":
        raise ValueError(f"a published view is drawn on the CPU, but its generator is on {generator.device}")

    def uniform(low: float, high: float) -> float:
        return torch.empty(1).uniform_(low, high, generator=generator).item()

    height, width = size_hw
    angle = uniform(-config.max_angle, config.max_angle)
    shift_x = round(uniform(-config.max_shift * height, config.max_shift * height)) / width
    most = config.max_shift if config.max_shift_y is None else config.max_shift_y
    shift_y = round(uniform(-most * width, most * width)) / height
    scale = uniform(*config.scale)
    columns = (torch.full((batch,), value, dtype=torch.float64) for value in (angle, shift_x, shift_y, scale))
    angle_B, shift_x_B, shift_y_B, scale_B = columns
    return AffineView(angle_B, shift_x_B, shift_y_B, scale_B, size_hw, config.padding, published=True)


def warp_images(images_BCHW: Tensor, view: AffineView) -> Tensor:
    """Warp each image, bilinear, same size. Outside the image: zeros or its reflection (`view.padding`)."""
    _check_batch(images_BCHW, view)
    if view.published:
        return _warp_published(images_BCHW, view)
    return _sample(images_BCHW, _warp_grid(images_BCHW, view), view.padding)


def unwarp_maps(maps_BKhw: Tensor, view: AffineView) -> tuple[Tensor, Tensor | None]:
    """Warp maps of the warped images back to the patches of the original images. Differentiable.

    Returns `(maps_back [B, K+1, h, w], valid [B, h, w] bool)`: one bilinear inverse with zeros out of view, and the
    positions that are fully in view, found by warping an image of ones there and back on the patch grid with the view's
    own padding (reflected patches do have content, so fewer edge positions are lost than with zeros). With a published
    view: two nearest-neighbour resamplings (shift back, then rotate and scale back), and None for `valid`.
    """
    _check_batch(maps_BKhw, view)
    if view.published:
        return _unwarp_published(maps_BKhw, view), None
    grid_Bhw2 = _unwarp_grid(maps_BKhw, view)
    ones_B1hw = torch.ones_like(maps_BKhw[:, :1], dtype=grid_Bhw2.dtype)
    there_B1hw = _sample(ones_B1hw, _warp_grid(ones_B1hw, view), view.padding)
    valid_Bhw = _sample(there_B1hw, grid_Bhw2, "zeros")[:, 0] > IN_VIEW
    return _sample(maps_BKhw, grid_Bhw2, "zeros"), valid_Bhw


def _warp_grid(like: Tensor, view: AffineView) -> Tensor:
    """Sampling grid [B, h, w, 2]: where each pixel x' of the view comes from, x = S^-1 R^-1 (x' - shift) / scale."""
    x_Bhw, y_Bhw = _axes(like)
    angle, shift_x, shift_y, scale = _columns(view, like)
    # Coordinates span [-1, 1], so a shift by a fraction s of the side is 2 s.
    x_Bhw, y_Bhw = _rotate(x_Bhw - 2 * shift_x, y_Bhw - 2 * shift_y, -angle, view.size_hw)
    if view.shear is not None:
        along_x, along_y = _slopes(view, like)
        y_Bhw = y_Bhw + along_y * x_Bhw
        x_Bhw = x_Bhw + along_x * y_Bhw
    return torch.stack((x_Bhw / scale, y_Bhw / scale), dim=-1)


def _unwarp_grid(like: Tensor, view: AffineView) -> Tensor:
    """Sampling grid [B, h, w, 2]: where each patch x of the image is in the view, x' = scale R S x + shift."""
    x_Bhw, y_Bhw = _axes(like)
    angle, shift_x, shift_y, scale = _columns(view, like)
    if view.shear is not None:
        along_x, along_y = _slopes(view, like)
        x_Bhw = x_Bhw - along_x * y_Bhw
        y_Bhw = y_Bhw - along_y * x_Bhw
    x_Bhw, y_Bhw = _rotate(x_Bhw, y_Bhw, angle, view.size_hw)
    return torch.stack((x_Bhw * scale + 2 * shift_x, y_Bhw * scale + 2 * shift_y), dim=-1)


def _axes(like: Tensor) -> tuple[Tensor, Tensor]:
    """x [1, 1, w] and y [1, h, 1] of the cell centres; -1 and 1 are the outer edges of the image.

    The grid is built with elementwise operations because the matrix product in `affine_grid` is off by up to a quarter
    of a pixel under bf16 autocast or TF32.
    """
    height, width = like.shape[-2:]
    dtype = torch.promote_types(like.dtype, torch.float32)
    x_w = (torch.arange(width, dtype=dtype, device=like.device) * 2 + 1) / width - 1
    y_h = (torch.arange(height, dtype=dtype, device=like.device) * 2 + 1) / height - 1
    return x_w.view(1, 1, -1), y_h.view(1, -1, 1)


def _columns(view: AffineView, like: Tensor) -> list[Tensor]:
    """Angle, shifts and scale as [B, 1, 1] on the device of `like`."""
    return [_column(values, like) for values in (view.angle, view.shift_x, view.shift_y, view.scale)]


def _column(values: Tensor, like: Tensor) -> Tensor:
    dtype = torch.promote_types(like.dtype, torch.float32)
    return values.to(like.device, dtype, non_blocking=True).view(-1, 1, 1)  # avoids a synchronisation


def _slopes(view: AffineView, like: Tensor) -> tuple[Tensor, Tensor]:
    """Tangents of the shears [B, 1, 1], in [-1, 1] coordinates, whose axes have different units: x per y, y per x."""
    assert view.shear is not None
    along_x, along_y = (_column(values, like).deg2rad().tan() for values in view.shear)
    aspect = view.size_hw[0] / view.size_hw[1]
    return along_x * aspect, along_y / aspect


def _rotate(x_Bhw: Tensor, y_Bhw: Tensor, angle: Tensor, size_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Rotate clockwise in pixels; in [-1, 1] coordinates of a non-square image the axes have different units."""
    cos, sin = angle.deg2rad().cos(), angle.deg2rad().sin()
    aspect = size_hw[0] / size_hw[1]
    return cos * x_Bhw - sin * aspect * y_Bhw, sin / aspect * x_Bhw + cos * y_Bhw


def _sample(images: Tensor, grid: Tensor, padding: Literal["zeros", "reflection"]) -> Tensor:
    if images.requires_grad and padding == "zeros" and torch.are_deterministic_algorithms_enabled():
        return _sample_deterministic(images, grid)
    sampled = F.grid_sample(images.to(grid.dtype), grid, mode="bilinear", padding_mode=padding, align_corners=False)
    return sampled.to(images.dtype)


def _sample_deterministic(maps_BKhw: Tensor, grid_Bhw2: Tensor) -> Tensor:
    """`_sample` by indexing: the backward pass of `grid_sample` has no deterministic CUDA kernel; indexing has one."""
    height, width = maps_BKhw.shape[-2:]
    x, y = (grid_Bhw2[..., 0] + 1) * width / 2 - 0.5, (grid_Bhw2[..., 1] + 1) * height / 2 - 0.5
    flat_BKN = maps_BKhw.flatten(2).to(grid_Bhw2.dtype)
    image = torch.arange(len(maps_BKhw), device=maps_BKhw.device).view(-1, 1, 1)
    result = torch.zeros((), dtype=flat_BKN.dtype, device=flat_BKN.device)
    # The four cells around each position, with bilinear weights; cells outside the map have weight 0.
    for column, row in product((x.floor(), x.floor() + 1), (y.floor(), y.floor() + 1)):
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        weight = (1 - (x - column).abs()) * (1 - (y - row).abs()) * inside
        cell = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
        result = result + weight[..., None] * flat_BKN[image, :, cell.long()]
    return result.permute(0, 3, 1, 2).to(maps_BKhw.dtype)


def _published_parameters(view: AffineView) -> tuple[float, float, float, float]:
    return view.angle[0].item(), view.shift_x[0].item(), view.shift_y[0].item(), view.scale[0].item()


def _warp_published(images: Tensor, view: AffineView) -> Tensor:
    angle, shift_x, shift_y, scale = _published_parameters(view)
    height, width = images.shape[-2:]
    shift = [float(round(shift_x * width)), float(round(shift_y * height))]
    return _torchvision_affine(images, angle, shift, scale, "bilinear")


def _unwarp_published(maps: Tensor, view: AffineView) -> Tensor:
    angle, shift_x, shift_y, scale = _published_parameters(view)
    height, width = maps.shape[-2:]
    maps = _torchvision_affine(maps, 0.0, [-shift_x * width, -shift_y * height], 1.0, "nearest")
    return _torchvision_affine(maps, -angle, [0.0, 0.0], 1 / scale, "nearest")


def _torchvision_affine(
    images: Tensor, angle: float, shift: list[float], scale: float, interpolation: Literal["bilinear", "nearest"]
) -> Tensor:
    """`torchvision.transforms.v2.functional.affine` without shear, to the last bit; zeros come in from outside.

    Its grid is made on the CPU and copied once: torchvision would copy constants to the device, and the host would wait
    for each of them.
    """
    height, width = images.shape[-2:]
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    matrix = [cos / scale, sin / scale, 0.0, -sin / scale, cos / scale, 0.0]
    for row in (0, 3):
        matrix[row + 2] = -matrix[row] * shift[0] - matrix[row + 1] * shift[1]
    half = torch.tensor([0.5 * width, 0.5 * height], dtype=images.dtype)
    theta = torch.tensor(matrix, dtype=images.dtype).view(2, 3).T / half
    base = torch.ones(height, width, 3, dtype=images.dtype)
    base[..., 0] = torch.linspace((1.0 - width) * 0.5, (width - 1.0) * 0.5, width)
    base[..., 1] = torch.linspace((1.0 - height) * 0.5, (height - 1.0) * 0.5, height)[:, None]
    with torch.autocast("cpu", enabled=False):  # a matrix product, which autocast would do in bf16
        grid_hw2 = (base.view(1, -1, 3) @ theta[None]).view(height, width, 2)
    grid = grid_hw2.to(images.device, non_blocking=True).expand(len(images), -1, -1, -1)
    return F.grid_sample(images, grid, mode=interpolation, padding_mode="zeros", align_corners=False)


def _check_batch(images: Tensor, view: AffineView) -> None:
    if images.ndim != 4 or len(images) != len(view):
        raise ValueError(f"a view of {len(view)} images cannot be applied to a tensor of shape {tuple(images.shape)}")
