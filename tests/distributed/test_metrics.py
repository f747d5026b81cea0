"""Every metric: the same values, to the last digit, from one process, two and three, for any number of images."""

from collections.abc import Iterable

import pytest
import torch

from common.processes import gather_blocks, processes
from datasets.types import Batch, DatasetInfo
from engine.explanation.map_metrics import MapMetricOptions
from metrics import METRICS, Prediction, build_metrics
from metrics.maps.as_masks import MaskComparison
from metrics.maps.background_swap import BackgroundSwap
from metrics.maps.per_image import MAP_METRICS
from metrics.types import Explanation
from tests.metrics import map_cases
from tests.metrics.cases import (
    BIRDS,
    THREE,
    few_resamples,
    many_classes,
    metrics_for,
    outside_metric,
    random_set,
    rows_of,
)  # fmt: skip
from tests.processes import on_processes

IMAGES = 7
CASES = {info.name: info for info in (BIRDS, THREE, many_classes(30))}
COLOURS = (0.5, 0.4, 0.3), (0.2, 0.2, 0.3)


def blocks(count: int) -> Iterable[torch.Tensor]:
    """This process's images in batches of at most two."""
    own = torch.tensor(processes().block(count), dtype=torch.int64)
    return own.split(2) if len(own) else ()


def results(info: DatasetInfo, images: int, fitted: int) -> dict[str, dict[str, float]]:
    """By metric, of the first `images`; metrics that are fitted see the first `fitted`."""
    batch, prediction = random_set(info, IMAGES)
    found = {}
    for name in metrics_for(info):
        metrics = build_metrics([name], info)
        for rows in blocks(fitted):
            metrics.fit(*rows_of(batch, prediction, rows))
        for rows in blocks(images):
            metrics.update(*rows_of(batch, prediction, rows))
        found[name] = metrics.compute()
    return found


def results_of_all_sizes(case: str) -> dict[str, str]:
    """As text: nan equals nan."""
    sizes = [*((images, IMAGES) for images in range(1, IMAGES + 1)), (1, 1), (IMAGES, 1)]
    with few_resamples(), outside_metric():
        return {str(size): repr(results(CASES[case], *size)) for size in sizes}


def test_every_metric_is_tried() -> None:
    assert {name for info in CASES.values() for name in metrics_for(info)} == set(METRICS)


@pytest.mark.parametrize("case", CASES)
def test_results_do_not_depend_on_the_number_of_processes(case: str) -> None:
    alone = results_of_all_sizes(case)
    assert all("'brier'" in text for text in alone.values())
    for world_size in (2, 3):
        assert on_processes(world_size, results_of_all_sizes, case) == [alone] * world_size


def predict(images: torch.Tensor) -> Prediction:
    """A model of three classes that looks at colours, each image by itself, and shows the brighter patches."""
    cells = images.mean(1).unfold(1, 4, 4).unfold(2, 4, 4).mean((3, 4))
    return Prediction(9 * images.mean((2, 3)), mask=cells > cells.mean((1, 2), keepdim=True))


def map_case(count: int = IMAGES) -> tuple[Batch, torch.Tensor]:
    """Images, and maps of a method that failed on one and says nothing of another."""
    batch, explanation = map_cases.random_maps(count)
    batch.image.copy_(torch.rand(batch.image.shape, generator=torch.Generator().manual_seed(0)))
    return batch, explanation.maps


def results_of_maps(images: int) -> dict[str, object]:
    """Of the first `images`: all map metrics, maps as masks, swapped backgrounds; and the rows of every image."""
    whole, maps = map_case()
    protocol = MapMetricOptions(*COLOURS, patch=4, steps=3)
    metrics = {name: MAP_METRICS[name](map_cases.INFO, **protocol.options(name)) for name in MAP_METRICS}
    swap, comparison = BackgroundSwap(predict), MaskComparison(map_cases.INFO, lambda x, mask: predict(x * 0.5).logits)
    start = processes().block(images).start
    if 0 < start < images:
        before = map_cases.take(whole, map_cases.explanation_of(maps, maps), [start - 1])[0]
        for metric in (*metrics.values(), swap):
            metric.start_after(before)
    for rows in blocks(images):
        batch, _ = map_cases.take(whole, map_cases.explanation_of(maps, maps), rows.tolist())
        seen, shown = predict(batch.image), maps[rows]
        for metric in metrics.values():
            metric.update(batch, Explanation(shown, seen.logits, lambda x: predict(x).logits))
        swap.update(batch, seen)
        comparison.update(batch, seen.mask, {"method": shown, "other": -shown})
    tables = {
        name: {column: gather_blocks(values.tolist()) for column, values in metric.per_image().items()}
        for name, metric in metrics.items()
    }
    summaries = {name: metric.compute() for name, metric in metrics.items()}
    paths = gather_blocks(metrics["abpc"].paths)
    return {**summaries, "swap": swap.compute(), "masks": comparison.compute(), "tables": tables, "paths": paths}


def results_of_some_maps(sizes: tuple[int, ...]) -> dict[int, str]:
    with few_resamples():
        return {size: repr(results_of_maps(size)) for size in sizes}


def test_results_of_maps_do_not_depend_on_the_number_of_processes() -> None:
    sizes = (1, 2, 5, IMAGES)
    alone = results_of_some_maps(sizes)
    assert repr([str(i) for i in range(IMAGES)]) in alone[IMAGES]
    for world_size in (2, 3):
        assert on_processes(world_size, results_of_some_maps, sizes) == [alone] * world_size


def test_the_image_before_a_block_is_the_last_one_of_another_process() -> None:
    """What the case above would not notice if no metric looked there."""
    batch, _ = map_case()
    told, alone = BackgroundSwap(predict), BackgroundSwap(predict)
    later = map_cases.take(batch, map_cases.explanation_of(batch.image, batch.image), [1, 2])[0]
    told.start_after(map_cases.take(batch, map_cases.explanation_of(batch.image, batch.image), [0])[0])
    for swap in (told, alone):
        swap.update(later, predict(later.image))
    assert told.compute() != alone.compute()
