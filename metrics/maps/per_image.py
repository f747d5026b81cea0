"""Metrics of heat maps: one row of numbers per image, metrics as a pure function of the rows, bootstrap intervals.

A row holds all that a metric needs of its image (scores, or counts to be pooled), so that the metrics of any resampled
data set follow from the rows.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from common.registry import Registry
from datasets.types import Batch, DatasetInfo
from metrics.base import ExactMetric
from metrics.maps.pixels import silent_maps
from metrics.types import Explanation

Columns = Mapping[str, np.ndarray]
"""Column name -> [n] float64, one value per image; nan where an image has none."""


class MapMetric(ExactMetric):
    """A metric of explanations; keeps one row of float64 per image. Results do not depend on the batch size."""

    target: ClassVar[Literal["predicted", "label"]]
    """The class whose maps are scored."""
    table: list[Tensor]
    columns: tuple[str, ...]
    """Names of the numbers in a row; set by the subclass or its `__init__`."""

    def __init__(self, info: DatasetInfo) -> None:
        super().__init__()
        self.paths: list[str] = []
        self.add_values("table")

    @abstractmethod
    def rows(self, batch: Batch, explanation: Explanation) -> Tensor:
        """[B, len(columns)] float64: the row of each image of the batch."""

    @abstractmethod
    def summarise(self, columns: Columns, weight: np.ndarray) -> dict[str, float]:
        """The metrics of a data set in which image i occurs weight[i] times; weight [n] float64 >= 0."""

    def start_after(self, previous: Batch) -> None:
        """Pass the image [1, ...] before the first one, which another process counts. For metrics that use it."""

    @abstractmethod
    def protocol(self) -> dict[str, object]:
        """The settings that reproduce the metrics; written beside them."""

    def update(self, batch: Batch, explanation: Explanation) -> None:  # type: ignore[override]
        """Count one batch."""
        rows = self.rows(batch, explanation).detach().to(self.device, torch.float64)
        if rows.shape != (len(batch), len(self.columns)):
            raise ValueError(f"rows have shape {tuple(rows.shape)}, expected {(len(batch), len(self.columns))}")
        self.table.append(rows.flatten())
        self.paths += batch.paths

    def reset(self) -> None:
        """Forget everything counted."""
        super().reset()
        self.paths = []

    def per_image(self) -> dict[str, np.ndarray]:
        """Column name -> [n] float64, in the order of `paths`; the images that this process counted."""
        table = self.values("table").reshape(-1, len(self.columns)).cpu().numpy()
        return {name: table[:, i] for i, name in enumerate(self.columns)}

    def table_of(self, values: Mapping[str, Tensor]) -> Tensor:
        """[B, len(columns)] float64 from the values [B], of any dtype, of some columns; nan in the others.

        Raises ValueError for a name that is not a column.
        """
        unknown = values.keys() - set(self.columns)
        if unknown:
            raise ValueError(f"no column {', '.join(sorted(unknown))}")
        missing = torch.full_like(next(iter(values.values())), torch.nan, dtype=torch.float64)
        return torch.stack([values.get(name, missing).to(torch.float64) for name in self.columns], dim=1)

    @staticmethod
    def with_flags(numbers: Tensor, maps: Tensor) -> Tensor:
        """[B, n + 2]: numbers [B, n], nan where the map is not finite, and the columns nan_map and constant_map."""
        failed, constant = silent_maps(maps)
        flags = torch.stack([failed, constant], 1)
        return torch.cat([numbers.masked_fill(failed[:, None], torch.nan), flags.to(numbers)], 1)

    def compute(self) -> dict[str, float]:
        """The metrics, and under `<key>/low` and `<key>/high` their 95 % bootstrap interval over images.

        Images are sorted by their rows first, so that neither their order nor the number of processes changes a digit.
        """
        columns = self.per_image()
        order = np.lexsort(tuple(columns.values()))
        columns = {name: values[order] for name, values in columns.items()}
        count = len(order)
        results = self.summarise(columns, np.ones(count))
        return results | bootstrap(lambda weight: self.summarise(columns, weight), count)


MapMetricFactory = Callable[..., MapMetric]
"""(DatasetInfo, **options) -> MapMetric: usually the class; the options are its keyword arguments."""
MAP_METRICS: Registry[MapMetricFactory] = Registry("map metric (--metrics)")


def weighted_mean(values: np.ndarray, weight: np.ndarray) -> float:
    """Mean of the values that are not nan, value i counted weight[i] times; nan of none."""
    there = ~np.isnan(values)
    total = weight[there].sum()
    return float((values[there] * weight[there]).sum() / total) if total else float("nan")


def count_flags(name: str, flags: Mapping[str, np.ndarray], columns: Columns, weight: np.ndarray) -> dict[str, float]:
    """`count/<name>/<flag>`: number of images with each of `flags` [n], and with a nan or constant map."""
    failed = {"nan_maps": columns["nan_map"], "constant_maps": columns["constant_map"]}
    return {f"count/{name}/{flag}": float(weight @ values) for flag, values in (dict(flags) | failed).items()}


def bootstrap(
    results: Callable[[np.ndarray], Mapping[str, float]], count: int, resamples: int = 1000, seed: int = 0
) -> dict[str, float]:
    """Percentile intervals: `<key>/low` and `<key>/high` enclose the middle 95 % over resampled data sets.

    `results` maps weights [count] to metrics; each resample draws `count` images with replacement. Resamples where a
    metric is nan are left out of its interval. Keys that start with `count/` have no interval. The draws depend on
    `seed` and `count` alone.
    """
    if count == 0:
        return {}
    random = np.random.default_rng(seed)
    # One draw at a time: all of them together would take gigabytes for the 50,000 images of ImageNet.
    draws = (np.bincount(random.integers(count, size=count), minlength=count) for _ in range(resamples))
    samples = [results(draw.astype(np.float64)) for draw in draws]
    bounds: dict[str, float] = {}
    for key in samples[0]:
        if key.startswith("count/"):
            continue
        values = np.array([sample[key] for sample in samples])
        low, high = np.nanquantile(values, [0.025, 0.975]) if not np.isnan(values).all() else (np.nan, np.nan)
        bounds |= {f"{key}/low": float(low), f"{key}/high": float(high)}
    return bounds
