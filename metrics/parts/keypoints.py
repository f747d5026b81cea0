"""Key points predicted from the centres of the discovered parts by least squares (published as "Kp. error")."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.metric_info import MetricInfo
from datasets.types import Batch, DatasetInfo
from metrics.base import FittedMetric, mean
from metrics.parts.part_maps import maps_of, part_centres
from metrics.registry import METRICS
from metrics.types import Prediction

ACTIVE = 0.5
"""A part is active in an image where its map exceeds this somewhere."""
SMALLEST_DEVIATION = 1e-9
"""A coordinate with a smaller standard deviation, in box sizes, counts as constant."""


@METRICS.register("keypoints")
class KeyPointRegression(FittedMetric):
    """Mean distance between true and predicted key points, in units of the object's box. Keys:

    - `keypoint_error`: mean over all visible key points of all images of the Euclidean distance in (x / width,
      y / height); published times 100. nan where nothing was counted, or where the map of a part is not finite
    - `count/keypoints`: the number of key points

    Each key point is predicted by a linear map without intercept, 2K -> 2, from the parts' centres, fitted by least
    squares on the training images where it is visible. Centres and key points are relative to the box and standardised
    over these images; a part that is not active is set to 0, the mean, in training and test. A key point that no
    training image shows is left out. Keeps 8 (3K + 3P) bytes per image.
    """

    shown: ClassVar = {"keypoint_error": MetricInfo(percent=True, headline=160, better="lower")}
    fitted: list[Tensor]
    fitted_images: Tensor
    scored: list[Tensor]
    scored_images: Tensor

    def __init__(self, info: DatasetInfo) -> None:
        """Raises UserError for a data set without parts."""
        super().__init__()
        if info.part_names is None:
            raise UserError(f"metric 'keypoints': data set {info.name!r} has no key points; drop it from --metrics")
        self.info, self.points = info, len(info.part_names)
        for name in ("fitted", "scored"):
            self.add_values(name)
            self.add_counter(f"{name}_images")

    def fit(self, batch: Batch, prediction: Prediction) -> None:
        """Take in one batch of the training split. Raises UserError without part maps, key points or box."""
        self.fitted.append(self._rows(batch, prediction).flatten())
        self.fitted_images += len(batch)

    def update(self, batch: Batch, prediction: Prediction) -> None:
        """Count one batch. Raises UserError as `fit` does."""
        self.scored.append(self._rows(batch, prediction).flatten())
        self.scored_images += len(batch)

    def _rows(self, batch: Batch, prediction: Prediction) -> Tensor:
        """[B, 3K + 3P] float64: centres [2K], active [K], key points [2P], visible [P]."""
        maps = maps_of(prediction, "keypoints")
        if batch.keypoints is None or batch.frame is None:
            raise UserError(f"metric 'keypoints': data set {self.info.name!r} lacks key points or boxes here")
        size = (batch.image.shape[2], batch.image.shape[3])
        corner, extent = batch.frame.double()[:, None].split(2, dim=2)
        centres = (part_centres(maps, size) - corner) / extent
        active = maps[:, :-1].amax(dim=(2, 3)) > ACTIVE
        points = (batch.keypoints[..., :2].double() - corner) / extent
        return torch.cat(
            [values.flatten(1) for values in (centres, active, points, batch.keypoints[..., 2] > 0)], dim=1
        )

    def compute(self) -> dict[str, float]:
        """The values named in the class docstring. Raises UserError where nothing was fitted."""
        if not self.scored_images:
            return {"keypoint_error": math.nan, "count/keypoints": 0.0}
        if not self.fitted_images:
            raise UserError("metric 'keypoints' needs a pass over the training split first; drop it from --metrics")
        train, test = self._table("fitted"), self._table("scored")
        if not (np.isfinite(train.centres).all() and np.isfinite(test.centres).all()):
            return {"keypoint_error": math.nan, "count/keypoints": float(test.visible.sum())}
        distances = [distance for point in range(self.points) for distance in distances_of(point, train, test)]
        return {"keypoint_error": mean(distances), "count/keypoints": float(len(distances))}

    def _table(self, name: str) -> "Table":
        """The rows of all images, sorted, so that the order of images and the number of processes change no digit."""
        rows = self.values(name).reshape(int(getattr(self, f"{name}_images")), -1).cpu().numpy()
        rows = rows[np.lexsort(rows.T)]
        parts = rows.shape[1] // 3 - self.points  # 3K + 3P columns
        centres, active, points, visible = np.split(rows, np.cumsum([2 * parts, parts, 2 * self.points]), axis=1)
        return Table(centres, active > 0, points.reshape(-1, self.points, 2), visible > 0)


@dataclass(frozen=True)
class Table:
    """n images; positions are relative to the corner of the box, in units of its width and height."""

    centres: np.ndarray
    """[n, 2K] (x, y) of each part."""
    active: np.ndarray
    """[n, K] bool."""
    points: np.ndarray
    """[n, P, 2] (x, y)."""
    visible: np.ndarray
    """[n, P] bool."""


def distances_of(point: int, train: Table, test: Table) -> list[float]:
    """Error of one key point in every test image that shows it; empty where no training image shows it."""
    seen, shown = train.visible[:, point], test.visible[:, point]
    if not seen.any():
        return []
    centre, centre_scale = mean_and_scale(train.centres[seen])
    target, target_scale = mean_and_scale(train.points[seen, point])
    # A part is 0 where it is not active: the mean of the standardised training centres.
    inputs = [
        np.where(table.active[rows].repeat(2, axis=1), (table.centres[rows] - centre) / centre_scale, 0)
        for table, rows in ((train, seen), (test, shown))
    ]
    weights = np.linalg.lstsq(inputs[0], (train.points[seen, point] - target) / target_scale, rcond=None)[0]
    errors = inputs[1] @ weights * target_scale + target - test.points[shown, point]
    distances: list[float] = np.linalg.norm(errors, axis=1).tolist()
    return distances


def mean_and_scale(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the columns of values [n, columns]; 1 for the deviation of a constant column."""
    deviation = values.std(0)
    return values.mean(0), np.where(deviation > SMALLEST_DEVIATION, deviation, 1)
