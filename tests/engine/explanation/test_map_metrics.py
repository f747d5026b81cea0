"""The choice of map metrics: all supported ones, the named ones, or a one-line error."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from common.errors import UserError
from datasets.types import Batch
from engine.explanation.map_metrics import DEFAULT, KNOWN, MapMetricOptions, build_map_metrics, wanted_metrics
from metrics.maps.per_image import MAP_METRICS
from tests.metrics.map_cases import INFO

BARE = Batch(torch.zeros(1, 3, 8, 8), torch.zeros(1, dtype=torch.int64), ("a",))
BOXED = replace(BARE, boxes=(torch.zeros(1, 4),))
MASKED = replace(BARE, mask=torch.zeros(1, 8, 8, dtype=torch.bool))
WITHOUT_ANNOTATIONS = ("abpc", "perturbation", "insertion_deletion", "certificate")
PROTOCOL = MapMetricOptions(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2), patch=8)


@pytest.mark.parametrize(
    ("sample", "two_stage", "maps", "others"),
    [
        (BARE, False, WITHOUT_ANNOTATIONS, (False, False)),
        (BOXED, False, ("localization", "pointing", *WITHOUT_ANNOTATIONS), (False, False)),
        (MASKED, False, DEFAULT, (False, True)),
        (MASKED, True, DEFAULT, (True, True)),
        (BARE, True, WITHOUT_ANNOTATIONS, (True, False)),
    ],
)
def test_default_is_every_supported_metric(
    sample: Batch, two_stage: bool, maps: tuple[str, ...], others: tuple[bool, bool]
) -> None:
    wanted = wanted_metrics(None, sample, two_stage)
    assert (wanted.maps, (wanted.as_masks, wanted.background_swap)) == (maps, others)


def test_only_the_named_metrics() -> None:
    wanted = wanted_metrics(["abpc", "perturbation_label", "as_masks"], MASKED, True)
    assert wanted.maps == ("abpc", "perturbation_label") and wanted.as_masks and not wanted.background_swap


@pytest.mark.parametrize(
    ("name", "sample", "says"),
    [
        ("acuracy", MASKED, "acuracy.*localization"),
        ("accuracy", MASKED, "accuracy.*localization"),
        ("segmentation", BOXED, "segmentation needs a data set with masks"),
        ("background_swap", BOXED, "background_swap needs a data set with masks"),
        ("localization", BARE, "localization needs a data set with masks or boxes"),
        ("pointing", BARE, "pointing needs a data set with masks or boxes"),
        ("detection", MASKED, "detection needs a data set with boxes"),
        ("as_masks", MASKED, "as_masks needs a two-stage run .*--masks-for"),
    ],
)
def test_unsupported_metrics(name: str, sample: Batch, says: str) -> None:
    with pytest.raises(UserError, match=f"--metrics.*{says}") as error:
        wanted_metrics(["abpc", name], sample, False)
    assert "\n" not in str(error.value)


def test_every_map_metric_can_be_built() -> None:
    assert set(MAP_METRICS) <= set(KNOWN) and set(DEFAULT) <= set(MAP_METRICS)
    built = build_map_metrics(tuple(MAP_METRICS), INFO, PROTOCOL)
    assert all(metric.protocol()["maps_of"] for metric in built.values())


OPTIONS: dict[str, tuple[dict[str, Any], str, str, Any]] = {
    "threshold": ({"threshold": 0.3}, "localization", "threshold", 0.3),
    "mean threshold": ({"threshold": None}, "localization", "threshold", "mean of each map"),
    "edges": ({"edges": "inclusive"}, "localization", "edges", "inclusive"),
    "tolerance": ({"tolerance": 15.0}, "pointing", "tolerance_pixels", 15.0),
    "steps": ({"steps": 4}, "abpc", "fractions", [0.0, 0.25, 0.5, 0.75, 1.0]),
    "cell": ({"cell": 4}, "insertion_deletion", "cell_pixels", 4),
    "fill": ({"fill": "blur"}, "perturbation_label", "fill", "blur"),
    "published fill of abpc": ({}, "abpc", "fill", "grey"),
    "published fill of perturbation": ({}, "perturbation", "fill", "black"),
    "published fill of deletion": ({}, "insertion_deletion", "fill", "mean"),
    "normalisation": ({}, "abpc", "normalised_by", {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2)}),
    "keep_ratio": ({"keep_ratio": 0.5}, "certificate", "kept", 0.5),
    "patch": ({"patch": 14}, "certificate", "patch_pixels", 14),
}


@pytest.mark.parametrize(("options", "metric", "key", "value"), OPTIONS.values(), ids=OPTIONS.keys())
def test_every_option_reaches_its_metric(options: dict[str, Any], metric: str, key: str, value: Any) -> None:
    protocol = replace(PROTOCOL, **options)
    assert build_map_metrics([metric], INFO, protocol)[metric].protocol()[key] == value
