"""Do two models differ on the same images? Bootstrap tests of any metric (ATCON, section 4)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from metrics.f1 import scores as f1_scores
from metrics.maps.per_image import bootstrap, weighted_mean
from metrics.multilabel import resampled_metrics

Values = Callable[[np.ndarray], Mapping[str, float]]
"""How often each image occurs, [n] float64 -> metrics of that data set; nan where one is undefined."""
PRESENT, LOGIT = "present/", "logit/"


@dataclass(frozen=True)
class Difference:
    """One metric of two models."""

    first: float
    second: float
    low: float
    high: float
    """Middle 95 % of first - second over resampled images, the same ones for both models."""
    p: float
    """Probability of a difference at least this large if the two models were the same (pooled bootstrap)."""


def compare(scores: Values, count: int, resamples: int = 1000, seed: int = 0) -> dict[str, Difference]:
    """Every metric of two models on the same `count` images.

    `scores` takes 2 `count` weights: those of the first model's predictions, then those of the second's in the same
    order. The pooled bootstrap draws `count` of these predictions for each model, `resamples` times; p is the fraction
    of draws whose absolute difference is at least the observed one, which itself counts as a draw. Draws where the
    metric is nan do not count.
    """
    none = np.zeros(count)

    def both(weight: np.ndarray) -> tuple[Mapping[str, float], Mapping[str, float]]:
        return scores(np.concatenate([weight, none])), scores(np.concatenate([none, weight]))

    def differences(weight: np.ndarray) -> dict[str, float]:
        first, second = both(weight)
        return {name: first[name] - second[name] for name in first}

    random = np.random.default_rng(seed)

    def drawn() -> Mapping[str, float]:
        draw = random.integers(2 * count, size=count)
        return scores(np.bincount(draw, minlength=2 * count).astype(np.float64))

    pairs = [(drawn(), drawn()) for _ in range(resamples)]
    bounds = bootstrap(differences, count, resamples, seed)
    first, second = both(np.ones(count))
    results = {}
    for name in first:
        observed = abs(first[name] - second[name])
        by_chance = np.array([abs(one[name] - other[name]) for one, other in pairs])
        known = by_chance[~np.isnan(by_chance)]
        # Equal differences may round differently.
        p = (1 + (known >= observed - 1e-12).sum()) / (1 + len(known)) if not np.isnan(observed) else np.nan
        results[name] = Difference(first[name], second[name], bounds[f"{name}/low"], bounds[f"{name}/high"], float(p))
    return results


@dataclass(frozen=True)
class SeedDifference:
    """One metric of two models, each trained with several seeds: difference of the means over seeds."""

    mean: float
    low: float
    high: float
    """Middle 95 % over resampled images (the same for all runs) and resampled seeds of either model."""


def compare_seeds(
    first: Sequence[pd.DataFrame], second: Sequence[pd.DataFrame], resamples: int = 2000, seed: int = 0
) -> dict[str, SeedDifference]:
    """`accuracy`, and with groups `worst_group_accuracy`, of the runs `first` minus those of `second`.

    Every run is a `predictions.csv` of the same images in the same order (their folders may differ). A resample draws
    images with replacement, within each group if there are groups, and as many runs of either model as it has, with
    replacement. Raises ValueError for different images.
    """
    runs, truth = (*first, *second), _images(first[0])
    if not all(truth.equals(_images(run)) for run in runs):
        raise ValueError("they were evaluated on different images")
    random = np.random.default_rng(seed)
    groups = truth["group"].fillna(-1).to_numpy()
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    right = np.stack([(run["label"] == run["predicted"]).to_numpy(float) for run in runs])
    weights = np.zeros((resamples, len(truth)))
    for own in members:
        weights[:, own] = random.multinomial(len(own), np.full(len(own), 1 / len(own)), size=resamples)
    # How often each run occurs in a resample, as a fraction; [resamples, runs], first minus second.
    signed = np.hstack(
        [
            sign * random.multinomial(len(side), np.full(len(side), 1 / len(side)), size=resamples) / len(side)
            for sign, side in ((1, first), (-1, second))
        ]
    )
    once = np.repeat([1 / len(first), -1 / len(second)], [len(first), len(second)])
    metrics = {"accuracy": [np.arange(len(truth))]} | ({"worst_group_accuracy": members} if len(members) > 1 else {})
    results = {}
    for name, parts in metrics.items():

        def by_run(weight: np.ndarray, parts: list[np.ndarray] = parts) -> np.ndarray:
            """[resamples, runs]: the lowest accuracy on a part of the images."""
            lowest: np.ndarray = np.stack([weight[:, own] @ right[:, own].T / len(own) for own in parts]).min(0)
            return lowest

        low, high = np.quantile((by_run(weights) * signed).sum(1), (0.025, 0.975))
        mean = (by_run(np.ones((1, len(truth)))) * once).sum()
        results[name] = SeedDifference(float(mean), float(low), float(high))
    return results


def _images(run: pd.DataFrame) -> pd.DataFrame:
    return run[["label", "group"]].assign(name=run["path"].str.rsplit("/", n=1).str[-1])


def prediction_metrics(table: pd.DataFrame) -> Values:
    """Accuracy, worst group, F1 and average precision of a `predictions.csv` of `evaluate.py`, one row per image."""
    several = [table.filter(regex=f"^{kind}").to_numpy(float) for kind in (PRESENT, LOGIT)]
    if several[0].size:
        return resampled_metrics(several[0] > 0, several[1])
    label, predicted = (table[name].to_numpy(int) for name in ("label", "predicted"))
    side = int(max(label.max(), predicted.max())) + 1
    right = (label == predicted).astype(np.float64)
    groups = [table["group"].to_numpy() == group for group in sorted(table["group"].dropna().unique())]

    def scores(weight: np.ndarray) -> dict[str, float]:
        # The last column of the counts is for images without a prediction.
        counts = np.bincount(label * (side + 1) + predicted, weight, minlength=side * (side + 1))
        results = {"accuracy": weighted_mean(right, weight)}
        if groups:
            by_group = np.array([weighted_mean(right[group], weight[group]) for group in groups])
            results["worst_group_accuracy"] = float(np.nanmin(by_group))
        return results | {"macro_f1": f1_scores(counts.reshape(side, side + 1))["macro_f1"]}

    return scores


def column_means(values: np.ndarray, name: str) -> Values:
    """The mean of one number per image, [n]."""
    return lambda weight: {name: weighted_mean(values, weight)}
