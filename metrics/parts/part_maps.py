"""Part maps at pixels, at key points and as centres, as in the published part evaluation.

Shapes: B images of H x W pixels, part maps [B, K+1, h, w] on the patch grid, last channel = background.
"""

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from common.errors import UserError
from metrics.types import Prediction

MOST_CHANNELS = 256
"""Width of the tables, at least K + 1: a state needs its shape before the first prediction is seen."""
IMAGES_AT_A_TIME = 8
"""Maps at pixels are K+1 times as large as the image: a whole batch of them may not fit into memory."""


def maps_of(prediction: Prediction, metric: str) -> Tensor:
    """The prediction's part maps, detached, float32. Raises UserError, naming the metric, where it has none."""
    if prediction.maps is None:
        raise UserError(f"metric {metric!r}: this model has no part maps; drop it from --metrics")
    return prediction.maps.detach().float()


def check_channels(maps: Tensor, metric: str) -> None:
    """Raise UserError, naming the metric, if maps [B, K+1, h, w] have more than MOST_CHANNELS channels."""
    if maps.shape[1] > MOST_CHANNELS:
        raise UserError(f"metric {metric!r} supports {MOST_CHANNELS - 1} parts, the model has {maps.shape[1] - 1}")


def pixel_labels(maps: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """[B, H, W] int64: the largest channel at every pixel of the maps enlarged bilinearly to size (H, W)."""
    some = maps.split(IMAGES_AT_A_TIME)
    enlarged = (interpolate(few, size=size, mode="bilinear", align_corners=align_corners) for few in some)
    return torch.cat([few.argmax(dim=1) for few in enlarged])


def point_labels(maps: Tensor, points: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, P] int64: `pixel_labels(maps, size, align_corners=False)` at points [B, P, 2] (x, y), pixels.

    A point belongs to the pixel with index round(x - 0.5), halves to even, clamped to the image, as published. Only
    these pixels are interpolated.
    """
    pixels = (points - 0.5).round()
    axes = zip(pixels.unbind(2), (size[1], size[0]), strict=True)
    # Pixel centres in the [-1, 1] of grid_sample.
    grid = torch.stack([(2 * axis.clamp(0, limit - 1) + 1) / limit - 1 for axis, limit in axes], dim=2)
    values = grid_sample(maps, grid[:, :, None].to(maps), padding_mode="border", align_corners=False)
    return values[..., 0].argmax(dim=1)


def part_centres(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, K, 2] float64 (x, y): the mean position of each part's map, pixels of images of size (H, W).

    A cell of the grid is placed at its first pixel, not at its centre, as published. A map of zeros has the centre
    (0, 0).
    """
    parts = maps[:, :-1].double()
    mass = parts.sum(dim=(2, 3)).clamp(min=torch.finfo(torch.float64).tiny)  # never 0 / 0
    h, w = parts.shape[2:]
    across = torch.arange(w, device=maps.device, dtype=torch.float64) * (size[1] / w)
    down = torch.arange(h, device=maps.device, dtype=torch.float64)[:, None] * (size[0] / h)
    return torch.stack([(parts * across).sum(dim=(2, 3)) / mass, (parts * down).sum(dim=(2, 3)) / mass], dim=-1)
