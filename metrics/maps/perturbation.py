"""Metrics that cover the image in the order of a heat map: ABPC, positive and negative perturbation, insertion and
deletion.
"""

from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from common.errors import UserError
from common.maps import minmax
from common.metric_info import MetricInfo
from datasets.types import Batch, DatasetInfo
from metrics.base import is_correct
from metrics.maps.per_image import MAP_METRICS
from metrics.maps.perturbation_curves import CurveMetric, probability
from metrics.maps.removal import Fill, blur, rank_cells
from metrics.types import Explanation

Ties = Literal["position", "published"]


@MAP_METRICS.register("abpc")
class ABPC(CurveMetric):
    """Area between the perturbation curves (AGCAM paper): least minus most relevant first, higher is better.

    `abpc`: mean over the curve points of p(label | least relevant removed) - p(label | most relevant removed);
    `abpc/lerf_auc`, `abpc/morf_auc`: the means of the two curves. Both ends count and contribute 0, so with 10 steps
    `abpc` is at most 9/11. Costs 2 (steps - 1) forward passes per image, and one for the fully covered image. The
    published images are normalised by 0.5, 0.5, which makes grey their 0.
    """

    name, target = "abpc", "label"
    fill: ClassVar[Fill] = "grey"
    shown: ClassVar = {"abpc": MetricInfo(headline=70)}
    lines = ("morf", "lerf")
    results = ("abpc", "abpc/lerf_auc", "abpc/morf_auc")
    facts = {"score": "softmax probability of the label", "area": "mean of the points, both ends included"}

    def __init__(self, info: DatasetInfo, *, ties: Ties = "position", **options: Any) -> None:
        """`options`: see `CurveMetric`. `ties`: the order of equal values.

        position: row-major, in both directions. published: maps are stretched to [0, 1] and 1 is added in float32,
        which makes values closer than about 6e-8 equal; which of equal values are covered is up to torch.topk, and so
        to the device. Raises UserError for an option out of range.
        """
        super().__init__(info, **options)
        if ties not in get_args(Ties):
            raise UserError(f"metric option ties={ties!r} is unknown; known: {', '.join(get_args(Ties))}")
        self.ties = ties

    def covered_both(self, maps: Tensor) -> Tensor:
        """See `CurveMetric.covered_both`."""
        if self.ties == "position":
            return super().covered_both(maps)
        shifted = minmax(maps.float())[0] + 1
        both = torch.cat([shifted, -shifted]).flatten(1)
        counts = self.removal.counts(both.shape[1])
        covered = torch.zeros(len(both), len(counts), both.shape[1], dtype=torch.bool, device=maps.device)
        for step, count in enumerate(counts):
            covered[:, step].scatter_(1, both.topk(count).indices, True)
        return covered.view(len(both), len(counts), *maps.shape[1:])

    def protocol(self) -> dict[str, object]:
        """See `CurveMetric.protocol`."""
        published = "torch.topk of the map in [0, 1] plus 1, float32"
        return super().protocol() | ({"ties": published} if self.ties == "published" else {})

    def curves(self, batch: Batch, explanation: Explanation) -> Tensor:
        """[B, 2, steps + 1] probability of the label."""
        inner = self.both_orders(batch, explanation)
        clean, blank = explanation.logits, self.blank(batch, explanation)
        ends = [logits[:, None, None].expand(-1, 2, 1, -1) for logits in (clean, blank)]
        return probability(torch.cat([ends[0], inner, ends[1]], 2), batch.label)

    def scores(self, curves: Tensor) -> tuple[Tensor, ...]:
        """The values named in the class docstring."""
        morf, lerf = curves.mean(-1).unbind(1)
        return lerf - morf, lerf, morf


@MAP_METRICS.register("perturbation")
class Perturbation(CurveMetric):
    """Positive and negative perturbation (Chefer et al.): is the label still predicted after 10, 20 ... 90 %?

    For maps of the predicted class. Positive covers the most relevant pixels first (lower is better), negative the
    least relevant (higher is better). For each: `..._auc`, the trapezoid area over [0.1, 0.9] (at most 0.8), and
    `..._mean`, the plain mean of the hit rates. The published code prints neither; the published values have the size
    of the first, times 100. Costs 2 (steps - 1) forward passes per image.

    Also recorded by the published code, here the means over images and the covered fractions 10 ... 90 %:
    `..._dissimilarity`, log(p(label) / second largest p), and `..._probability_change` and `..._logit_change`, the
    largest probability or logit minus that of the clean image, whatever their classes.
    """

    name = "perturbation"
    target: ClassVar[Literal["predicted", "label"]] = "predicted"
    lines = (
        *("positive", "negative", "positive_dissimilarity", "negative_dissimilarity"),
        *(
            "positive_probability_change",
            "negative_probability_change",
            "positive_logit_change",
            "negative_logit_change",
        ),
    )
    results: ClassVar[tuple[str, ...]] = (
        "perturbation/positive_auc",
        "perturbation/negative_auc",
        "perturbation/positive_mean",
        "perturbation/negative_mean",
        *(f"perturbation/{line}" for line in lines[2:]),
    )
    fill: ClassVar[Fill] = "black"
    with_blank = False
    shown: ClassVar = {
        "perturbation/positive_auc": MetricInfo(headline=80),
        "perturbation/negative_auc": MetricInfo(headline=90),
    }
    facts = {
        "score": "hit: the predicted class is the label",
        "area": "trapezoid without both ends; mean beside it",
        "dissimilarity": "log(p(label) / second largest p)",
        "changes": "largest probability or logit minus the clean image's",
    }

    def curves(self, batch: Batch, explanation: Explanation) -> Tensor:
        """[B, 8, steps], in the order of `lines`: hits 0 or 1, dissimilarities, changes."""
        clean = explanation.logits[:, None, None].expand(-1, 2, 1, -1)
        logits = torch.cat([clean, self.both_orders(batch, explanation)], 2)
        label = batch.label[:, None, None].expand(logits.shape[:-1])
        hits = is_correct(logits.flatten(0, 2), label.flatten()).view(label.shape).double()
        logits = logits.double()
        largest = logits.topk(min(2, logits.shape[-1]), dim=-1).values  # equal to the ratio of probabilities
        dissimilarity = logits.gather(-1, label[..., None])[..., 0] - largest[..., -1]
        values = logits.softmax(-1).amax(-1), largest[..., 0]
        return torch.cat([hits, dissimilarity, *(value - value[..., :1] for value in values)], 1)

    def scores(self, curves: Tensor) -> tuple[Tensor, ...]:
        """The values named in the class docstring."""
        covered = curves[..., 1:]  # without the clean image
        return (*self.area(covered[:, :2]).unbind(1), *covered.mean(-1).unbind(1))


@MAP_METRICS.register("perturbation_label")
class LabelPerturbation(Perturbation):
    """`Perturbation` for maps of the label."""

    name, target = "perturbation_label", "label"
    results = tuple(key.replace("perturbation", "perturbation_label") for key in Perturbation.results)


@MAP_METRICS.register("insertion_deletion")
class InsertionDeletion(CurveMetric):
    """RISE: probability of the class predicted for the clean image, most relevant pixels first.

    `insertion_deletion/deletion`: pixels of the image are covered, lower is better; `insertion_deletion/insertion`:
    pixels of the image are inserted into its blurred version, higher is better. Both are the trapezoid area over
    [0, 1]. Costs 2 steps - 1 forward passes per image, and one for the fully covered image. `fill` is deletion's;
    "mean" is RISE's.
    """

    name, target = "insertion_deletion", "predicted"
    fill: ClassVar[Fill] = "mean"
    shown: ClassVar = {
        "insertion_deletion/insertion": MetricInfo(headline=100),
        "insertion_deletion/deletion": MetricInfo(headline=110),
    }
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
        inner = self.inner(explanation, starts, covers, self.removal.covered(rank))
        first = torch.stack([clean, self.blurred(batch, explanation)], 1)
        last = torch.stack([self.blank(batch, explanation), clean], 1)
        return probability(torch.cat([first[:, :, None], inner, last[:, :, None]], 2), clean.argmax(1))

    def scores(self, curves: Tensor) -> tuple[Tensor, ...]:
        """The values named in the class docstring."""
        return self.area(curves).unbind(1)
