"""What all map metrics share: rows, exactness under any batching, and bootstrap intervals."""

import json
import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from datasets.types import Batch
from metrics.maps.per_image import MAP_METRICS, Columns, MapMetric, bootstrap, weighted_mean
from metrics.types import Explanation
from tests.metrics.map_cases import INFO, feed, random_maps

NAMES = ("localization", "pointing", "segmentation")


class Mean(MapMetric):
    """Mean over images of the map's mean."""

    target = "label"
    columns = ("mean", "nothing")

    def rows(self, batch: Batch, explanation: Explanation) -> Tensor:
        return self.table_of({"mean": explanation.maps.nanmean(dim=(1, 2))})

    def summarise(self, columns: Columns, weight: np.ndarray) -> dict[str, float]:
        mean = weighted_mean(columns["mean"], weight)
        return {"mean": mean, "none": weighted_mean(columns["nothing"], weight), "count/images": float(weight.sum())}

    def protocol(self) -> dict[str, object]:
        return {}


def same(a: Mapping[str, float], b: Mapping[str, float]) -> bool:
    return a.keys() == b.keys() and all(a[key] == b[key] or math.isnan(a[key]) and math.isnan(b[key]) for key in a)


@pytest.mark.parametrize("name", NAMES)
def test_no_digit_depends_on_batch_size_or_order(name: str) -> None:
    batch, explanation = random_maps()
    whole = feed(MAP_METRICS[name](INFO), batch, explanation, 23).compute()
    order = torch.randperm(23, generator=torch.Generator().manual_seed(0)).tolist()
    for size, sequence in ((1, range(23)), (4, range(23)), (5, order)):
        assert same(feed(MAP_METRICS[name](INFO), batch, explanation, size, sequence).compute(), whole)
    assert len(whole) > 10 and all(isinstance(value, float) for value in whole.values())


@pytest.mark.parametrize("name", NAMES)
def test_no_digit_depends_on_the_number_of_processes(name: str) -> None:
    batch, explanation = random_maps()
    whole = feed(MAP_METRICS[name](INFO), batch, explanation, 23).compute()
    first, second = (feed(MAP_METRICS[name](INFO), batch, explanation, 3, range(rank, 23, 2)) for rank in (0, 1))
    for state, values in second.states():
        setattr(first, state, getattr(first, state) + values)
    assert same(first.compute(), whole)


@pytest.mark.parametrize("name", NAMES)
def test_rows_and_protocol(name: str) -> None:
    batch, explanation = random_maps()
    metric = feed(MAP_METRICS[name](INFO), batch, explanation, 5)
    table = metric.per_image()
    assert tuple(table) == metric.columns and {len(values) for values in table.values()} == {23}
    assert tuple(metric.paths) == batch.paths
    assert metric.target in ("predicted", "label")
    assert json.loads(json.dumps(metric.protocol()))["maps_of"] == f"{metric.target} class"
    first = metric.compute()
    metric.reset()
    assert metric.paths == [] and len(metric.per_image()["nan_map"]) == 0
    assert same(feed(metric, batch, explanation, 7).compute(), first)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_counted(name: str) -> None:
    results = MAP_METRICS[name](INFO).compute()
    assert results[f"count/{name}/images"] == 0
    assert all(math.isnan(value) for key, value in results.items() if not key.startswith("count/"))


def test_rows_of_the_wrong_shape_and_unknown_columns() -> None:
    class Wrong(Mean):
        def rows(self, batch: Batch, explanation: Explanation) -> Tensor:
            return torch.zeros(len(batch), 1)

    with pytest.raises(ValueError, match=r"rows have shape \(23, 1\), expected \(23, 2\)"):
        Wrong(INFO).update(*random_maps())
    with pytest.raises(ValueError, match="no column other"):
        Mean(INFO).table_of({"other": torch.zeros(1)})


def test_intervals_of_a_mean() -> None:
    batch, explanation = random_maps(n=200)
    results = feed(Mean(INFO), batch, explanation, 64).compute()
    values = explanation.maps.nanmean(dim=(1, 2)).double()
    error = values.std().item() / math.sqrt(200)
    assert results["mean/low"] == pytest.approx(results["mean"] - 1.96 * error, abs=0.15 * error)
    assert results["mean/high"] == pytest.approx(results["mean"] + 1.96 * error, abs=0.15 * error)
    assert math.isnan(results["none"]) and math.isnan(results["none/low"])
    assert results["count/images"] == 200 and "count/images/low" not in results


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    random, covered = np.random.default_rng(0), 0
    for _ in range(200):
        values = random.exponential(size=80)
        bounds = bootstrap(lambda weight, values=values: {"m": weighted_mean(values, weight)}, 80, resamples=200)
        covered += bounds["m/low"] <= 1.0 <= bounds["m/high"]
    assert 0.90 <= covered / 200 <= 0.98


def test_bootstrap_is_a_function_of_its_seed_and_resamples_whole_data_sets() -> None:
    totals = []

    def scores(weight: np.ndarray) -> dict[str, float]:
        totals.append(weight.sum())
        return {"first": weight[0]}

    assert bootstrap(scores, 9, resamples=50) == bootstrap(scores, 9, resamples=50)
    assert totals == [9.0] * 100
    values = np.arange(9.0)
    one, other = (bootstrap(lambda weight: {"m": weighted_mean(values, weight)}, 9, 50, seed) for seed in (0, 1))
    assert one != other
    assert bootstrap(scores, 0) == {}
    assert bootstrap(scores, 1, resamples=5) == {"first/low": 1.0, "first/high": 1.0}


def test_figures_that_only_some_resamples_have() -> None:
    bounds = bootstrap(lambda weight: {"a": 3.0 if weight[0] else math.nan}, 2, resamples=40)
    assert bounds == {"a/low": 3.0, "a/high": 3.0}


def test_weighted_mean() -> None:
    values = np.array([1.0, np.nan, 4.0])
    assert weighted_mean(values, np.array([2.0, 7.0, 1.0])) == 2.0
    assert math.isnan(weighted_mean(values, np.array([0.0, 7.0, 0.0])))


def test_known_names() -> None:
    assert set(NAMES) <= set(MAP_METRICS)
