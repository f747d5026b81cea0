"""Numerical precision with pretrained weights on photographs, where sums cancel and gradients change quickly.

docs/lrp.md, docs/explanations.md and docs/metrics.md state the bounds. Tests with generated images and random weights
are in the files of the methods and metrics.
"""

from pathlib import Path
from typing import get_args

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from benchmarks.lrp_precision import difference, load_images, load_model, one_by_one
from datasets.types import Batch, DatasetInfo
from explain import explain
from explain.explained_model import explained_model
from explain.integrated_gradients import completeness_gap
from metrics.maps.perturbation import ABPC, Ties
from metrics.types import Explanation
from tests.explain.textbook_lrp import lrp as by_hand

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "weights" / "dinov2_small.safetensors"
PHOTOGRAPHS = ROOT.parent / "shared" / "data" / "real_birds" / "waterbird_complete95_forest2water2"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not WEIGHTS.is_file(), reason="needs weights/dinov2_small.safetensors"),
    pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="needs ../shared/data/real_birds"),
]


@pytest.fixture(scope="module")
def vit() -> VisionTransformer:
    return load_model("vit_small_patch14_dinov2", str(WEIGHTS), 140)


def photographs(vit: VisionTransformer, count: int) -> tuple[Tensor, Tensor]:
    """Images, and the classes that are predicted for them."""
    images = load_images(PHOTOGRAPHS, count, 140)
    with torch.no_grad():
        return images, vit(images).argmax(1)


@pytest.mark.parametrize("variant", ["transformer_attribution", "second_layer", "full"])
def test_lrp_maps_are_those_of_float64(vit: VisionTransformer, variant: str) -> None:
    images, targets = photographs(vit, 10)
    found = explain(vit, images, "lrp", targets, variant=variant)
    double = load_model("vit_small_patch14_dinov2", str(WEIGHTS), 140).double()
    pairs = zip(images.double(), targets, strict=True)
    expected = torch.stack([by_hand(double, image[None], int(c), variant, "ours") for image, c in pairs])
    ranks, error = difference(found, expected)
    assert min(ranks) > 0.99999 and error < 1e-5


@pytest.mark.parametrize(("variant", "spearman", "guard"), [("transformer_attribution", 0.99, 1e-2), ("full", 0, 0.2)])
def test_lrp_in_float32_is_far_from_it(vit: VisionTransformer, variant: str, spearman: float, guard: float) -> None:
    images, targets = photographs(vit, 10)
    with pytest.warns(UserWarning, match="lrp in float32"):
        measured = one_by_one(vit, images, targets, variant=variant)
    assert measured["lowest_spearman"] < spearman
    assert 1e-6 < measured["guard"] < guard


def test_integrated_gradients_need_auto_steps(vit: VisionTransformer) -> None:
    images, targets = photographs(vit, 2)
    with pytest.warns(UserWarning, match="use steps=auto"):
        fixed = explain(vit, images, "integrated_gradients", targets)
    chosen = explain(vit, images, "integrated_gradients", targets, steps="auto")
    explained = explained_model(vit, images)
    assert completeness_gap(explained, images, targets, fixed).max() > 1
    assert completeness_gap(explained, images, targets, chosen).max() <= 0.05


@pytest.mark.parametrize(("method", "image", "mean"), [("agcam", 1e-3, 1e-4), ("gradcam", 0.1, 0.02)])
def test_the_order_of_equal_values_matters_for_maps_with_many(
    vit: VisionTransformer, method: str, image: float, mean: float
) -> None:
    """gradcam: half of the values are 0. agcam: values that differ by less than 6e-8 after enlarging."""
    images, targets = photographs(vit, 10)
    predict = torch.no_grad()(vit)
    maps, scores = explain(vit, images, method, targets), []
    for ties in get_args(Ties):
        metric = ABPC(DatasetInfo("birds", ()), mean=MEAN, std=STD, ties=ties)
        metric.update(Batch(images, targets, ("",) * 10), Explanation(maps, predict(images), predict))
        scores.append(torch.from_numpy(metric.per_image()["abpc"]))
    changes = scores[1] - scores[0]
    assert image / 20 < changes.abs().max() < image
    assert changes.mean().abs() < mean
