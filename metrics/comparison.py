"""Do two models differ on the same images? Bootstrap tests of any metric (ATCON, section 4)."""

from collections.abc import Callable, Mapping
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
