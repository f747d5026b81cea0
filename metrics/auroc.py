"""Area under the ROC curve from exact pair counts.

Own code rather than torchmetrics' AUROC for three reasons: that one ranks float32 probabilities, where a confident
model's scores all become 1.0 and tie; it adds the area up in float32; and it counts a class without images as 0.
"""

import math

import torch
from torch import Tensor

from datasets.types import Batch, DatasetInfo
from metrics.base import ExactMetric, check_logits, mean
from metrics.registry import MAX_NAMED_CLASSES, METRICS
from metrics.types import Prediction

BINS = 2048
LOG_ODDS_RANGE = 32.0


def auroc_from_counts(positive: Tensor, negative: Tensor) -> float:
    """Probability that a positive outranks a negative, ties one half (Mann-Whitney).

    positive, negative: [V] int64, how many of each have the v-th smallest distinct score. nan without both kinds.
    """
    below = negative.cumsum(0) - negative
    pairs = 2 * int(positive.sum()) * int(negative.sum())
    return int((positive * (2 * below + negative)).sum()) / pairs if pairs else math.nan


def auroc_from_scores(scores: Tensor, is_positive: Tensor) -> float:
    """Exact AUROC of scores [N] (any real scale) against is_positive [N] bool; nan where a score is nan."""
    if scores.isnan().any():
        return math.nan
    distinct, place = scores.unique(return_inverse=True)
    positive = place[is_positive].bincount(minlength=len(distinct))
    return auroc_from_counts(positive, place.bincount(minlength=len(distinct)) - positive)


def log_odds(logits: Tensor) -> Tensor:
    """[N, C] float64: log p_c / (1 - p_c) of softmax(logits [N, C]), which ranks as p_c does and never saturates.

    Only the largest p can come near 1, so only there 1 - p is taken from the other logits.
    """
    wide = logits.to(torch.float64)
    log_p = wide.log_softmax(dim=1)
    odds = log_p - torch.log1p(-log_p.exp())
    top = wide.argmax(dim=1, keepdim=True)
    others = wide.scatter(1, top, -math.inf).logsumexp(dim=1, keepdim=True)
    return odds.scatter(1, top, wide.gather(1, top) - others)


class ExactAuroc(ExactMetric):
    """`auroc`: binary, of P(class 1); else the one-vs-rest macro mean over the classes that have images and non-images.

    `stage_1/auroc` too where the prediction has stage-1 logits. Keeps 8 (C + 1) bytes per image and stage.
    """

    def __init__(self, info: DatasetInfo) -> None:
        super().__init__()
        self.info = info
        self.add_values("rows")
        self.add_values("rows_stage_1")

    def update(self, batch: Batch, prediction: Prediction) -> None:
        """Keep the logits and labels of one batch."""
        self.follow(prediction)
        pairs = (("rows", prediction.logits), ("rows_stage_1", prediction.stage_1_logits))
        for state, logits in pairs:
            if logits is not None:
                check_logits(logits, batch.label, self.info.num_classes)
                row = torch.cat([batch.label[:, None].to(torch.float64), logits.detach().to(torch.float64)], dim=1)
                getattr(self, state).append(row.flatten())

    def compute(self) -> dict[str, float]:
        """The metrics named in the class docstring."""
        results = {"auroc": self._of("rows")}
        if self.values("rows_stage_1").numel():
            results["stage_1/auroc"] = self._of("rows_stage_1")
        return results

    def _of(self, state: str) -> float:
        rows = self.values(state).reshape(-1, self.info.num_classes + 1)
        label, logits = rows[:, 0], rows[:, 1:]
        if self.info.num_classes == 2:
            return auroc_from_scores(logits[:, 1] - logits[:, 0], label == 1)
        scores = log_odds(logits)
        if scores.isnan().any():
            return math.nan  # else the mean over classes would drop it
        by_class = [auroc_from_scores(scores[:, c], label == c) for c in range(self.info.num_classes)]
        return mean(by_class)


class BinnedAuroc(ExactMetric):
    """`auroc` for many classes in bounded memory: one-vs-rest macro mean, scores in `BINS` bins of their log-odds.

    The bins span +-`LOG_ODDS_RANGE`, so scores closer than 1/32 in log-odds tie. 2 C BINS int64 counters (33 MB at
    1000 classes). A nan makes the result nan. Stage 1 is left out.
    """

    positive: Tensor
    all: Tensor
    broken: Tensor

    def __init__(self, info: DatasetInfo) -> None:
        super().__init__()
        self.info = info
        self.add_counter("positive", info.num_classes * BINS)
        self.add_counter("all", info.num_classes * BINS)
        self.add_counter("broken")

    def update(self, batch: Batch, prediction: Prediction) -> None:
        """Count one batch into the histograms."""
        self.follow(prediction)
        check_logits(prediction.logits, batch.label, self.info.num_classes)
        scores = log_odds(prediction.logits)
        self.broken += scores.isnan().any(dim=1).sum()
        unit = (scores.nan_to_num() / (2 * LOG_ODDS_RANGE) + 0.5).clamp(0, 1)
        bins = (unit * (BINS - 1)).round().to(torch.int64)
        bins += BINS * torch.arange(self.info.num_classes, device=bins.device)
        self.all.index_add_(0, bins.flatten(), torch.ones_like(bins).flatten())
        own = bins.gather(1, batch.label[:, None]).flatten()
        self.positive.index_add_(0, own, torch.ones_like(own))

    def compute(self) -> dict[str, float]:
        """The figure named in the class docstring."""
        if self.broken.item():
            return {"auroc": math.nan}
        positive, everything = self.positive.reshape(-1, BINS).cpu(), self.all.reshape(-1, BINS).cpu()
        by_class = [auroc_from_counts(p, a - p) for p, a in zip(positive, everything, strict=True)]
        return {"auroc": mean(by_class)}


@METRICS.register("auroc")
def auroc(info: DatasetInfo) -> ExactMetric:
    """`ExactAuroc`, or `BinnedAuroc` beyond `MAX_NAMED_CLASSES` classes."""
    return ExactAuroc(info) if info.num_classes <= MAX_NAMED_CLASSES else BinnedAuroc(info)
