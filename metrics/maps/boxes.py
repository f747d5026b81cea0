"""From boxes to pixels and back; the true objects of a batch.

Boxes are xyxy in pixels, measured at pixel edges: a box around one whole pixel is (x, y, x + 1, y + 1).
"""

from typing import Literal, get_args

import numpy as np
import torch
from skimage.measure import label, regionprops
from torch import Tensor

from common.errors import UserError
from datasets.types import Batch
from metrics.types import Explanation

Edges = Literal["exact", "inclusive", "strict"]
"""exact: a box holds the pixels whose centres it encloses. inclusive, as AGCAM published: coordinates are
truncated to integers and both ends are filled, so that a box around 10 x 10 pixels fills 11 x 11. strict, as ATCON
published: the pixels whose indices lie strictly between the coordinates, so that a box around 10 x 10 pixels fills
9 x 9."""

TRUTHS = ("boxes", "mask")
"""The kinds of true objects, in the order of the metrics."""


def check_edges(edges: str) -> None:
    """Raise UserError unless `edges` is one of `Edges`."""
    if edges not in get_args(Edges):
        raise UserError(f"metric option edges={edges!r} is unknown; known: {', '.join(get_args(Edges))}")


def fill_boxes(boxes: np.ndarray, size: tuple[int, int], edges: Edges = "exact") -> np.ndarray:
    """[H, W] bool: the union of boxes [N, 4], clipped to size (H, W)."""
    match edges:
        case "exact":
            corners = np.ceil(boxes - 0.5)
        case "inclusive":
            corners = np.trunc(boxes) + [0, 0, 1, 1]
        case "strict":
            corners = np.hstack([np.floor(boxes[:, :2]) + 1, np.ceil(boxes[:, 2:])])
    filled = np.zeros(size, bool)
    # Clipped, because a negative index would count from the other end.
    for left, top, right, bottom in corners.clip(min=0).astype(int):
        filled[top:bottom, left:right] = True
    return filled


def component_boxes(mask: np.ndarray) -> np.ndarray:
    """[N, 4] int: the box around each 8-connected component of mask [H, W] bool, in row-major order of first pixels."""
    found = [region.bbox for region in regionprops(label(mask, connectivity=2))]
    return np.array(found, int).reshape(-1, 4)[:, [1, 0, 3, 2]]


def fill_components(masks: Tensor, edges: Edges = "exact") -> Tensor:
    """[B, H, W] bool on the device of masks [B, H, W] bool: the union of the boxes around each mask's components."""
    arrays = masks.cpu().numpy()
    filled = [fill_boxes(component_boxes(mask), mask.shape, edges) for mask in arrays]
    return torch.from_numpy(np.stack(filled)).to(masks.device, non_blocking=True)


def true_objects(batch: Batch, explanation: Explanation, metric: str, edges: Edges = "exact") -> dict[str, Tensor]:
    """Pixels of the objects, [B, H, W] bool, under "boxes" (filled) and "mask", whichever the batch has.

    Raises UserError, naming the metric, where it has neither.
    """
    objects = {}
    if batch.boxes is not None:
        objects["boxes"] = explanation.once(("true boxes", edges), lambda: _filled_boxes(batch, edges))
    if batch.mask is not None:
        objects["mask"] = batch.mask
    if not objects:
        raise UserError(
            f"metric {metric!r} needs boxes or masks, and this data set has neither; drop it from --metrics"
        )
    return objects


def _filled_boxes(batch: Batch, edges: Edges) -> Tensor:
    size = (batch.image.shape[2], batch.image.shape[3])
    filled = [fill_boxes(boxes.cpu().numpy(), size, edges) for boxes in batch.boxes or ()]
    return torch.from_numpy(np.stack(filled)).to(batch.image.device, non_blocking=True)
