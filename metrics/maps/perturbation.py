"""Metrics that cover the image in the order of a heat map and watch the model's answer: ABPC, positive and negative
perturbation, insertion and deletion.
"""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from datasets.types import Batch, DatasetInfo
from metrics.base import is_correct
from metrics.maps.per_image import MAP_METRICS
from metrics.maps.perturbation_curves import CurveMetric, probability
from metrics.maps.removal import Colour, Fill, Removal, blur, rank_cells
from metrics.types import Explanation


class ABPC(CurveMetric):
    """Area between the perturbation curves (AGCAM paper): least minus most relevant first, higher is better.

    `abpc`: mean over the curve points of p(label | least relevant removed) - p(label | most relevant removed);
    `abpc/lerf_auc`, `abpc/morf_auc`: the means of the two curves. Both ends count and contribute 0, so with 10 steps
    `abpc` is at most 9/11. An image costs 2 (steps - 1) forwards, and the metric one more for the covered image.
    """

    name, target = "abpc", "label"
    lines = ("morf", "lerf")
    results = ("abpc", "abpc/lerf_auc", "abpc/morf_auc")
    facts = {"score": "softmax probability of the label", "area": "mean of the points, both ends included"}

    def curves(self, batch: Batch, explanation: Explanation) -> Tensor:
        """[B, 2, steps + 1] probability of the label."""
        inner = self.both_orders(batch, explanation)
        clean, blank = explanation.logits, self.blank(batch, explanation)
        ends = [logits[:, None, None].expand(-1, 2, 1, -1) for logits in (clean, blank)]
        return probability(torch.cat([ends[0], inner, ends[1]], 2), batch.label)

    def scores(self, curves: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        morf, lerf = curves.mean(-1).unbind(1)
        return lerf - morf, lerf, morf


class Perturbation(CurveMetric):
    """Positive and negative perturbation (Chefer et al.): is the answer still the label after 10, 20 ... 90 %?

    Of the maps of the predicted class. Positive removes the most relevant first (lower is better), negative the least
    (higher is better). For each: `..._auc`, the trapezoid area over [0.1, 0.9] (at most 0.8), and `..._mean`, the plain
    mean of the hit rates. The published code prints neither; its published metrics have the size of the first, times
    100. An image costs 2 (steps - 1) forwards.
    """

    name = "perturbation"
    target: ClassVar[Literal["predicted", "label"]] = "predicted"
    lines = ("positive", "negative")
    results: ClassVar[tuple[str, ...]] = (
        "perturbation/positive_auc",
        "perturbation/negative_auc",
        "perturbation/positive_mean",
        "perturbation/negative_mean",
    )
    with_ends = False
    facts = {"score": "hit: the predicted class is the label", "area": "trapezoid without both ends; mean beside it"}

    def curves(self, batch: Batch, explanation: Explanation) -> Tensor:
        """[B, 2, steps - 1] hits, 0 or 1."""
        logits = self.both_orders(batch, explanation)
        label = batch.label[:, None, None].expand(logits.shape[:-1])
        return is_correct(logits.flatten(0, 2), label.flatten()).view(label.shape).double()

    def scores(self, curves: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        return (*self.area(curves).unbind(1), *curves.mean(-1).unbind(1))


class LabelPerturbation(Perturbation):
    """`Perturbation` of the maps of the label."""

    name, target = "perturbation_label", "label"
    results = tuple(figure.replace("perturbation", "perturbation_label") for figure in Perturbation.results)


class InsertionDeletion(CurveMetric):
    """RISE: probability of the class predicted for the clean image, most relevant pixels first.

    `insertion_deletion/deletion`: pixels of the image are covered, lower is better;
    `insertion_deletion/insertion`: pixels of the image return to its blurred version, higher is better. Both are the
    trapezoid area over [0, 1]. An image costs 2 steps - 1 forwards, and the metric one more.
    """

    name, target = "insertion_deletion", "predicted"
    lines = ("deletion", "insertion")
    results = ("insertion_deletion/deletion", "insertion_deletion/insertion")
    facts = {
        "score": "softmax probability of the class predicted for the clean image",
        "area": "trapezoid over [0, 1]",
        "insertion_starts_from": "the image blurred by a Gaussian of 11x11 pixels, sigma 5",
    }

    def curves(self, batch: Batch, explanation: Explanation) -> Tensor:
        """[B, 2, steps + 1] probability."""
        images, clean, blurred = batch.image, explanation.logits, blur(batch.image)
        rank = rank_cells(self.removal.cells(explanation.maps, images)).repeat(2, 1, 1)
        starts, covers = torch.cat([images, blurred]), torch.cat([self.removal.cover(images), images])
        inner = self.inner(explanation, starts, covers, rank)
        first = torch.stack([clean, self.removal.ask(explanation.predict, blurred)], 1)
        last = torch.stack([self.blank(batch, explanation), clean], 1)
        return probability(torch.cat([first[:, :, None], inner, last[:, :, None]], 2), clean.argmax(1))

    def scores(self, curves: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        return self.area(curves).unbind(1)


@MAP_METRICS.register("abpc")
def abpc(info: DatasetInfo, *, mean: Colour, std: Colour, fill: Fill = "grey", **options: Any) -> ABPC:
    """See `ABPC`; options as `Removal`. The published images are normalised by 0.5, 0.5, which makes grey their 0."""
    return ABPC(info, Removal(mean, std, fill, **options))


@MAP_METRICS.register("perturbation")
def perturbation(info: DatasetInfo, *, mean: Colour, std: Colour, fill: Fill = "black", **options: Any) -> Perturbation:
    """See `Perturbation`; options as `Removal`."""
    return Perturbation(info, Removal(mean, std, fill, **options))


@MAP_METRICS.register("perturbation_label")
def perturbation_label(
    info: DatasetInfo, *, mean: Colour, std: Colour, fill: Fill = "black", **options: Any
) -> LabelPerturbation:
    """See `Perturbation`; options as `Removal`."""
    return LabelPerturbation(info, Removal(mean, std, fill, **options))


@MAP_METRICS.register("insertion_deletion")
def insertion_deletion(
    info: DatasetInfo, *, mean: Colour, std: Colour, fill: Fill = "mean", **options: Any
) -> InsertionDeletion:
    """See `InsertionDeletion`; options as `Removal`. The fill is deletion's; "mean" is RISE's."""
    return InsertionDeletion(info, Removal(mean, std, fill, **options))
