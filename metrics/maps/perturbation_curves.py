"""The base of the perturbation metrics: curves of the model's output per image, and values computed from them.

Shape legend: B images, L curves, S points of a curve, C classes.
"""

from abc import abstractmethod
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from datasets.types import Batch, DatasetInfo
from metrics.maps.per_image import Columns, MapMetric, count_flags, weighted_mean
from metrics.maps.pixels import silent_maps
from metrics.maps.removal import Colour, CoveredImages, Fill, Removal, blur, rank_cells
from metrics.types import Explanation


class CurveMetric(MapMetric):
    """Curves per image and the values computed from them.

    Keys: means over the images whose map is finite; `count/<name>/images` of them, `count/<name>/nan_maps` left out,
    and `count/<name>/constant_maps`, which rank nothing (all ties, so pixels are covered in row-major order) and are
    scored. Options: `fill`, by default that of the publication, and `steps`, `patch` and `chunk` of `Removal`.
    """

    name: ClassVar[str]
    lines: ClassVar[tuple[str, ...]]
    """Names of the curves."""
    results: ClassVar[tuple[str, ...]]
    """Names of the values that `scores` computes from the curves of an image."""
    facts: ClassVar[dict[str, str]]
    """The part of the protocol that does not depend on options."""
    fill: ClassVar[Fill]
    """The published fill."""
    with_blank: ClassVar[bool] = True
    """Whether the curves end with the fully covered image. All start with the clean one."""

    def __init__(
        self,
        info: DatasetInfo,
        *,
        mean: Colour,
        std: Colour,
        fill: Fill | None = None,
        steps: int = 10,
        patch: int = 1,
        chunk: int | None = None,
    ) -> None:
        """`mean`, `std`: the normalisation of the images. Raises UserError for an option out of range."""
        super().__init__(info)
        self.removal = Removal(mean, std, fill or self.fill, steps, patch, chunk)
        self.fractions = tuple(step / steps for step in range(steps + self.with_blank))
        points = tuple(f"{self.name}/{line}@{fraction:g}" for line in self.lines for fraction in self.fractions)
        self.columns = (*self.results, *points, "nan_map", "constant_map")
        self._blank: Tensor | None = None

    @abstractmethod
    def curves(self, batch: Batch, explanation: Explanation) -> Tensor:
        """[B, L, S] float64, lines in the order of `lines`, points in that of `fractions`."""

    @abstractmethod
    def scores(self, curves: Tensor) -> tuple[Tensor, ...]:
        """One [B] for each of `results`."""

    def reset(self) -> None:
        """Forget everything counted, and the logits of the fully covered image."""
        super().reset()
        self._blank = None

    def rows(self, batch: Batch, explanation: Explanation) -> Tensor:
        """[B, columns]; all nan except the flags where the map is not finite."""
        failed, constant = silent_maps(explanation.maps)
        # Enlarging would turn a constant map into rounding noise with an order.
        maps = explanation.maps.masked_fill((failed | constant)[:, None, None], 0)
        curves = self.curves(batch, replace(explanation, maps=maps))
        numbers = torch.cat([torch.stack(self.scores(curves), 1), curves.flatten(1)], 1)
        return self.with_flags(numbers, explanation.maps)

    def summarise(self, columns: Columns, weight: np.ndarray) -> dict[str, float]:
        """The values named in the class docstring."""
        results = {key: weighted_mean(columns[key], weight) for key in self.results}
        flags = {"images": ~np.isnan(columns[self.results[0]])}
        return results | count_flags(self.name, flags, columns, weight)

    def mean_curves(self) -> dict[str, list[float]]:
        """For plots: the covered `fraction`, and the mean of each line at it."""
        table = self.per_image()
        weight = np.ones(len(self.paths))
        return {"fraction": list(self.fractions)} | {
            line: [weighted_mean(table[f"{self.name}/{line}@{f:g}"], weight) for f in self.fractions]
            for line in self.lines
        }

    def protocol(self) -> dict[str, object]:
        """The settings that reproduce the metrics."""
        removal = self.removal
        return self.facts | {
            "maps_of": f"{self.target} class",
            "fill": removal.fill,
            "steps": removal.steps,
            "fractions": list(self.fractions),
            "cell_pixels": removal.patch,
            "ties": "row-major position",
            "nan_maps": "counted, left out of the means",
            "normalised_by": {"mean": removal.mean, "std": removal.std},
        }

    def both_orders(self, batch: Batch, explanation: Explanation) -> Tensor:
        """Logits [B, 2, S, C] of the inner steps, the most relevant covered first, then the least relevant."""
        covered = self.covered_both(self.removal.cells(explanation.maps, batch.image))
        images = batch.image.repeat(2, 1, 1, 1)
        return self.inner(explanation, images, self.removal.cover(images), covered)

    def covered_both(self, maps: Tensor) -> Tensor:
        """[2 B, S, h, w] bool: the cells covered after each inner step, by falling and then by rising value of maps."""
        return self.removal.covered(rank_cells(torch.cat([maps, -maps])))

    def inner(self, explanation: Explanation, images: Tensor, cover: Tensor, covered: Tensor) -> Tensor:
        """Logits of the `CoveredImages` of [2 B] images, two for each image, as [B, 2, S, C]."""
        count = len(images) // 2
        logits = explanation.predict_all(CoveredImages(images, cover, covered), self.removal.chunk)
        return logits.view(2, count, covered.shape[1], -1).transpose(0, 1)

    def blank(self, batch: Batch, explanation: Explanation) -> Tensor:
        """Logits [B, C] of the fully covered images; for a fill of one colour they are computed once for all images."""
        removal = self.removal
        if removal.fill == "blur":
            return self.blurred(batch, explanation)
        if self._blank is None:
            key = ("covered", removal.fill, removal.mean, removal.std)
            self._blank = explanation.once(key, lambda: explanation.predict(removal.cover(batch.image[:1])))
        return self._blank.expand(len(batch), -1)

    def blurred(self, batch: Batch, explanation: Explanation) -> Tensor:
        """Logits [B, C] of the blurred images."""
        chunk = self.removal.chunk
        return explanation.once(("blurred", chunk), lambda: explanation.predict_all(blur(batch.image), chunk))

    def area(self, curves: Tensor) -> Tensor:
        """Trapezoid area [B, L] under curves [B, L, S]; the width of [0, 1] is the whole image."""
        return torch.trapezoid(curves, dx=1 / self.removal.steps, dim=-1)


def probability(logits: Tensor, chosen: Tensor) -> Tensor:
    """Softmax probability, float64 [B, ...], of the class chosen [B] in logits [B, ..., C]."""
    index = chosen.view(-1, *[1] * (logits.ndim - 1)).expand(*logits.shape[:-1], 1)
    return logits.double().softmax(-1).gather(-1, index).squeeze(-1)
