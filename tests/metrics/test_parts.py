"""Part agreement against whole enlarged maps and scikit-learn, and on maps that know everything or nothing."""

from dataclasses import replace

import pytest
import torch
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch import Tensor
from torch.nn.functional import interpolate, one_hot

from common.errors import UserError
from datasets.types import Batch
from metrics import Prediction, build_metrics
from metrics.parts.part_maps import MOST_CHANNELS, point_labels
from tests.metrics.cases import BIRDS, feed, random_set


def measured(batch: Batch, maps: Tensor, size: int = 4) -> dict[str, float]:
    prediction = Prediction(torch.zeros(len(batch), 2), maps=maps)
    return feed(build_metrics(["parts"], BIRDS), batch, prediction, size)


def slow(batch: Batch, maps: Tensor) -> dict[str, float]:
    """The spec's words: the whole map at pixels, one list of labels for all images."""
    enlarged = interpolate(maps, size=batch.image.shape[2:], mode="bilinear", align_corners=False)
    at_points: list[tuple[int, int]] = []
    for image, points in zip(enlarged, batch.keypoints.tolist(), strict=True):
        for name, (x, y, visible) in enumerate(points):
            if visible:
                row, column = max(round(y - 0.5), 0), max(round(x - 0.5), 0)
                at_points.append((name, int(image[:, row, column].argmax())))
    truth, found = zip(*at_points, strict=True)
    pixels = batch.part_labels.flatten() % 4, enlarged.argmax(dim=1).flatten()  # -1 becomes 3
    return {
        "part_nmi": normalized_mutual_info_score(truth, found),
        "part_ari": adjusted_rand_score(truth, found),
        "count/part_points": len(truth),
        "part_nmi_pixels": normalized_mutual_info_score(*pixels),
        "part_ari_pixels": adjusted_rand_score(*pixels),
        "count/part_pixels": len(pixels[0]),
    }


@pytest.mark.parametrize("parts", [1, 6])
def test_against_whole_maps_and_scikit_learn(parts: int) -> None:
    batch, prediction = random_set(BIRDS, n=21, parts=parts)
    assert measured(batch, prediction.maps) == pytest.approx(slow(batch, prediction.maps), abs=1e-12)


@pytest.mark.parametrize("grid", [(6, 8), (5, 7), (24, 32), (1, 1)])
def test_points_are_pixels_of_the_whole_map(grid: tuple[int, int]) -> None:
    """Corners and halves (to even) included; the largest channel alone is compared, so values may round apart."""
    g = torch.Generator().manual_seed(0)
    maps = torch.rand(2, 5, *grid, generator=g)
    y, x = torch.meshgrid(torch.arange(0, 23.5, 0.5), torch.arange(0, 31.5, 0.5), indexing="ij")
    points = torch.stack([x, y], dim=-1).reshape(1, -1, 2).expand(2, -1, -1)
    whole = interpolate(maps, size=(24, 32), mode="bilinear", align_corners=False).argmax(dim=1)
    rows, columns = ([max(round(float(v) - 0.5), 0) for v in points[0, :, i]] for i in (1, 0))
    assert torch.equal(point_labels(maps, points, (24, 32)), whole[:, rows, columns])


def test_maps_that_know_everything() -> None:
    batch, _ = random_set(BIRDS, n=30)
    order = torch.tensor([2, 0, 3, 1])  # which channel is which part is nobody's business
    pixels = one_hot(order[batch.part_labels], 4).permute(0, 3, 1, 2).float()
    results = measured(replace(batch, keypoints=None), pixels)
    assert results == {"part_nmi_pixels": 1.0, "part_ari_pixels": 1.0, "count/part_pixels": 30 * 24 * 32}
    centres = torch.tensor([[4.5, 4.5, 1], [12.5, 12.5, 1], [28.5, 20.5, 1]]).expand(30, -1, -1)
    maps = torch.zeros(30, 4, 6, 8)
    for channel, (x, y, _) in enumerate(centres[0].tolist()):
        maps[:, channel, int(y) // 4, int(x) // 4] = 1
    results = measured(replace(batch, keypoints=centres, part_labels=None), maps)
    assert results == {"part_nmi": 1.0, "part_ari": 1.0, "count/part_points": 90}


def test_maps_that_know_nothing() -> None:
    batch, prediction = random_set(BIRDS, n=400)
    results = measured(batch, prediction.maps, 64)
    assert 0 <= results["part_nmi"] < 0.02 and abs(results["part_ari"]) < 0.01
    assert 0 <= results["part_nmi_pixels"] < 0.001 and abs(results["part_ari_pixels"]) < 0.001
    flat = measured(batch, torch.ones(400, 4, 6, 8), 64)
    assert flat["part_nmi"] == flat["part_ari"] == 0


def test_hidden_points_do_not_count() -> None:
    batch, prediction = random_set(BIRDS, n=12)
    moved = torch.where(batch.keypoints[..., 2:] > 0, batch.keypoints, batch.keypoints.new_tensor([0, 0, 0]))
    assert measured(replace(batch, keypoints=moved), prediction.maps) == measured(batch, prediction.maps)


def test_what_is_missing_is_named() -> None:
    batch, prediction = random_set(BIRDS, n=4)
    with pytest.raises(UserError, match="'birds' has no parts; drop it from --metrics"):
        build_metrics(["parts"], replace(BIRDS, part_names=None))
    with pytest.raises(UserError, match="'parts': this model has no part maps; drop it from --metrics"):
        build_metrics(["parts"], BIRDS).update(batch, replace(prediction, maps=None))
    with pytest.raises(UserError, match="'birds' carries no parts"):
        build_metrics(["parts"], BIRDS).update(replace(batch, keypoints=None, part_labels=None), prediction)
    with pytest.raises(UserError, match="supports 255 parts, the model has 256"):
        measured(batch, torch.zeros(4, MOST_CHANNELS + 1, 2, 2))
