"""Bootstrap tests of two models against their textbook form, which draws and measures data sets one by one."""

import math

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, f1_score

from metrics.comparison import column_means, compare, compare_seeds, prediction_metrics


def answers(count: int, seed: int, skill: float) -> pd.DataFrame:
    """Answers to the same images by a model that knows the label of a share `skill` of them."""
    label = np.random.default_rng(0).integers(3, size=count)
    random = np.random.default_rng(seed)
    said = np.where(random.random(count) < skill, label, random.integers(3, size=count))
    return pd.DataFrame({"label": label, "predicted": said, "group": label % 2})


def textbook_p(first: pd.DataFrame, second: pd.DataFrame, figure: str, resamples: int, seed: int) -> float:
    """Pool both models' answers; draw two data sets; count how often they are at least as far apart."""

    def measure(table: pd.DataFrame) -> float:
        right = table["label"] == table["predicted"]
        return {
            "accuracy": lambda: right.mean(),
            "worst_group_accuracy": lambda: right.groupby(table["group"]).mean().min(),
            "macro_f1": lambda: f1_score(table["label"], table["predicted"], average="macro"),
        }[figure]()

    random, pool = np.random.default_rng(seed), pd.concat([first, second], ignore_index=True)
    observed, hits = abs(measure(first) - measure(second)), 1
    for _ in range(resamples):
        one, other = (pool.iloc[random.integers(len(pool), size=len(first))] for _ in range(2))
        hits += abs(measure(one) - measure(other)) >= observed - 1e-12
    return hits / (1 + resamples)


@pytest.mark.parametrize("figure", ["accuracy", "worst_group_accuracy", "macro_f1"])
@pytest.mark.parametrize("skills", [(0.8, 0.7), (0.5, 0.5)])
def test_p_is_the_textbooks(figure: str, skills: tuple[float, float]) -> None:
    first, second = answers(60, 1, skills[0]), answers(60, 2, skills[1])
    found = compare(prediction_metrics(pd.concat([first, second], ignore_index=True)), 60, resamples=60, seed=5)[figure]
    assert found.p == pytest.approx(textbook_p(first, second, figure, resamples=60, seed=5), abs=1e-9)
    assert found.low <= found.first - found.second <= found.high


def test_a_clear_difference_and_none() -> None:
    good, bad = answers(200, 1, 0.9), answers(200, 2, 0.3)
    clear = compare(prediction_metrics(pd.concat([good, bad], ignore_index=True)), 200, resamples=200)["accuracy"]
    assert clear.p == pytest.approx(1 / 201) and clear.low > 0
    same = compare(prediction_metrics(pd.concat([good, good], ignore_index=True)), 200, resamples=200)["accuracy"]
    assert (same.p, same.low, same.high, same.first) == (1, 0, 0, same.second)


def test_the_interval_pairs_the_images() -> None:
    """Each image is 0.1 better for the first model: there is no doubt, however much images differ."""
    values = np.random.default_rng(0).random(50)
    found = compare(column_means(np.concatenate([values + 0.1, values]), "iou"), 50, resamples=100)["iou"]
    assert (found.low, found.high) == (pytest.approx(0.1), pytest.approx(0.1))
    assert 0.01 < found.p < 1, "the pooled bootstrap, as published, does not know the pairs"


def test_several_classes() -> None:
    random = np.random.default_rng(0)
    present, logits = random.random((80, 3)) > 0.6, random.normal(size=(80, 3))
    table = pd.DataFrame(
        np.hstack([present, logits + present]), columns=[f"{k}/{c}" for k in ("present", "logit") for c in "abc"]
    )
    found = compare(prediction_metrics(table), 40, resamples=30)
    for half, name in ((slice(40), "first"), (slice(40, 80), "second")):
        truth, scores = present[half], (logits + present)[half]
        expected = {
            "mean_average_precision": average_precision_score(truth, scores, average="macro"),
            "macro_f1": f1_score(truth, scores > 0, average="macro"),
            "micro_f1": f1_score(truth, scores > 0, average="micro"),
        }
        assert {key: getattr(value, name) for key, value in found.items()} == pytest.approx(expected)


def test_a_figure_that_is_not_there() -> None:
    found = compare(column_means(np.full(4, np.nan), "iou"), 2, resamples=5)["iou"]
    assert math.isnan(found.p) and math.isnan(found.first)


def runs(count: int, skills: list[float], seed: int) -> list[pd.DataFrame]:
    tables = [answers(count, seed + i, skill) for i, skill in enumerate(skills)]
    return [table.assign(path=[f"run{i}/{n}.png" for n in range(count)]) for i, table in enumerate(tables)]


def test_difference_over_seeds_is_the_textbook_s_two_level_bootstrap() -> None:
    """Against a loop that draws images by group and runs, and measures every data set one by one."""
    first, second = runs(300, [0.9, 0.8, 0.85], 10), runs(300, [0.3, 0.5], 20)
    found = compare_seeds(first, second, resamples=1500)

    def worst(table: pd.DataFrame) -> float:
        return (table["label"] == table["predicted"]).groupby(table["group"]).mean().min()

    random, drawn = np.random.default_rng(1), []
    by_group = [np.flatnonzero(first[0]["group"] == group) for group in (0, 1)]
    for _ in range(400):
        rows = np.concatenate([random.choice(own, len(own)) for own in by_group])
        one, other = (
            [worst(side[i].iloc[rows]) for i in random.integers(len(side), size=len(side))] for side in (first, second)
        )
        drawn.append(np.mean(one) - np.mean(other))
    low, high = np.quantile(drawn, (0.025, 0.975))
    result = found["worst_group_accuracy"]
    assert result.mean == pytest.approx(np.mean([worst(t) for t in first]) - np.mean([worst(t) for t in second]))
    assert result.low == pytest.approx(low, abs=0.04) and result.high == pytest.approx(high, abs=0.04)
    assert result.low < result.mean < result.high and result.high - result.low > 0.1


def test_one_seed_of_the_same_predictions_has_no_difference() -> None:
    (table,) = runs(50, [0.7], 1)
    same = compare_seeds([table], [table])
    assert all((d.mean, d.low, d.high) == (0, 0, 0) for d in same.values())
    without = table.assign(group=None)
    assert list(compare_seeds([without], [without])) == ["accuracy"]


def test_runs_on_different_images_cannot_be_compared() -> None:
    first, second = runs(50, [0.7], 1), runs(50, [0.7], 2)
    with pytest.raises(ValueError, match="different images"):
        compare_seeds(first, [second[0].assign(label=0)])
