"""Key-point regression against scikit-learn in loops, and on worked examples."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from common.errors import UserError
from datasets.types import Batch
from metrics import MetricSet, Prediction, build_metrics
from metrics.parts.part_maps import part_centres
from tests.metrics.cases import BIRDS, feed, random_set, rows_of

N, TRAIN = 120, 80
SIZE = (24, 32)
LOGITS = torch.zeros(N, 2)


def peaked_set(parts: int = 3, seed: int = 1) -> tuple[Batch, Tensor]:
    """Maps [N, K+1, 6, 8] of which each part is active in some images."""
    batch, _ = random_set(BIRDS, n=N, parts=parts, seed=seed)
    g = torch.Generator().manual_seed(seed)
    gain = 2.5 * torch.rand(N, parts + 1, 1, 1, generator=g)
    logits = gain * torch.randn(N, parts + 1, 6, 8, generator=g)
    logits[:, -1] += 2
    return batch, logits.softmax(dim=1)


def measured(batch: Batch, maps: Tensor, size: int = 16) -> dict[str, float]:
    """Fitted on the first TRAIN images, scored on the others."""
    metrics, prediction = build_metrics(["keypoints"], BIRDS), Prediction(LOGITS, maps=maps)
    for show, images in ((metrics.fit, torch.arange(TRAIN)), (metrics.update, torch.arange(TRAIN, N))):
        for rows in images.split(size):
            show(*rows_of(batch, prediction, rows))
    return metrics.compute()


def slow(batch: Batch, maps: Tensor) -> float:
    """The spec's words, image by image."""
    h, w = maps.shape[2:]
    centres, active, points = [], [], []
    for i in range(N):
        x, y, width, height = batch.frame[i].tolist()
        at, on = [], []
        for part in maps[i, :-1].double().numpy():
            row = sum(part[r, c] * r for r in range(h) for c in range(w)) / part.sum() * SIZE[0] / h
            column = sum(part[r, c] * c for r in range(h) for c in range(w)) / part.sum() * SIZE[1] / w
            at += [(column - x) / width, (row - y) / height]
            on += 2 * [part.max() > 0.5]
        centres.append(at)
        active.append(on)
        points.append([[(px - x) / width, (py - y) / height] for px, py, _ in batch.keypoints[i].tolist()])
    C, active_, P, seen = np.array(centres), np.array(active), np.array(points), batch.keypoints[..., 2].numpy() > 0
    train, distances = np.arange(N) < TRAIN, []
    for k in range(P.shape[1]):
        fit, score = train & seen[:, k], ~train & seen[:, k]
        of_centres, of_points = StandardScaler().fit(C[fit]), StandardScaler().fit(P[fit, k])
        inputs = np.where(active_, of_centres.transform(C), 0)
        model = LinearRegression(fit_intercept=False).fit(inputs[fit], of_points.transform(P[fit, k]))
        predicted = of_points.inverse_transform(model.predict(inputs[score]))
        distances += np.linalg.norm(predicted - P[score, k], axis=1).tolist()
    return float(np.mean(distances))


@pytest.mark.parametrize("parts", [1, 4])
def test_against_scikit_learn_in_loops(parts: int) -> None:
    batch, maps = peaked_set(parts)
    shares = (maps[:, :-1].amax(dim=(2, 3)) > 0.5).float().mean(0)
    assert ((shares < 0.95) & (shares > 0.2)).all()
    results = measured(batch, maps)
    assert results["keypoint_error"] == pytest.approx(slow(batch, maps), rel=1e-6)
    assert results["count/keypoints"] == int((batch.keypoints[TRAIN:, :, 2] > 0).sum())


@pytest.mark.parametrize("size", [1, 7, 40])
def test_batches_change_no_digit(size: int) -> None:
    batch, maps = peaked_set()
    assert measured(batch, maps, size) == measured(batch, maps, 80)


def spots(cells: Tensor, parts: int) -> Tensor:
    """Maps [N, K+1, 6, 8]: part k is 1 at cell cells[:, k] (row, column) and 0 elsewhere."""
    maps = torch.zeros(N, parts + 1, 6, 8)
    for k in range(parts):
        maps[torch.arange(N), k, cells[:, k, 0], cells[:, k, 1]] = 1
    maps[:, -1] = 1 - maps[:, :-1].amax(dim=1)
    return maps


def test_parts_that_tell_where_the_key_points_are() -> None:
    """Each key point is a linear function of two parts' centres, so nothing is left but rounding."""
    batch, _ = random_set(BIRDS, n=N)
    g = torch.Generator().manual_seed(3)
    cells = torch.stack([torch.randint(6, (N, 2), generator=g), torch.randint(8, (N, 2), generator=g)], dim=-1)
    at = 4.0 * cells.flip(-1)
    points = torch.stack([at[:, 0], at[:, 1], (at[:, 0] + at[:, 1]) / 2], dim=1)
    batch = replace(batch, keypoints=torch.cat([points, torch.ones(N, 3, 1)], dim=2))
    results = measured(batch, spots(cells, 2))
    assert results["keypoint_error"] < 1e-6 and results["count/keypoints"] == 3 * (N - TRAIN)


def test_parts_that_tell_nothing_leave_the_mean() -> None:
    """No part is active: every prediction is the training mean."""
    batch, _ = peaked_set()
    flat = torch.full((N, 4, 6, 8), 0.25)
    points = (batch.keypoints[..., :2].double() - batch.frame[:, None, :2]) / batch.frame[:, None, 2:]
    distances = []
    for k in range(3):
        seen = batch.keypoints[:, k, 2] > 0
        mean = points[:TRAIN, k][seen[:TRAIN]].mean(0)
        distances += (points[TRAIN:, k][seen[TRAIN:]] - mean).norm(dim=1).tolist()
    assert measured(batch, flat)["keypoint_error"] == pytest.approx(sum(distances) / len(distances), rel=1e-9)


def test_where_the_centre_of_a_map_is() -> None:
    """A cell lies where its first pixel does; two equal cells share; a map without a value is at (0, 0)."""
    maps = torch.zeros(1, 4, 6, 8)
    maps[0, 0, 2, 5] = 0.3
    maps[0, 1, 0, 1] = maps[0, 1, 3, 4] = 0.5
    assert part_centres(maps, SIZE)[0].tolist() == [[20, 8], [10, 6], [0, 0]]


def test_a_key_point_that_training_never_shows_is_left_out() -> None:
    batch, maps = peaked_set()
    parts = batch.keypoints.clone()
    parts[:TRAIN, 1, 2] = 0
    results = measured(replace(batch, keypoints=parts), maps)
    assert results["count/keypoints"] == int((parts[TRAIN:, [0, 2], 2] > 0).sum())
    assert 0 < results["keypoint_error"] < 1


def test_maps_that_are_not_finite_have_no_error() -> None:
    batch, maps = peaked_set()
    maps[N - 1, 0, 0, 0] = math.nan
    assert math.isnan(measured(batch, maps)["keypoint_error"])


def test_a_reset_forgets_the_fit() -> None:
    batch, maps = peaked_set()
    metrics, prediction = build_metrics(["keypoints"], BIRDS), Prediction(LOGITS, maps=maps)
    first = feed(metrics, batch, prediction, 50)
    metrics.reset()
    metrics.update(batch, prediction)
    with pytest.raises(UserError, match="'keypoints' needs a pass over the training split first"):
        metrics.compute()
    metrics.reset()
    assert feed(metrics, batch, prediction, 50) == first


def test_only_fitted_metrics_ask_for_training_images() -> None:
    assert build_metrics(["accuracy", "keypoints", "parts"], BIRDS).to_fit == ("keypoints",)
    assert build_metrics(["accuracy", "parts"], BIRDS).to_fit == ()


def test_what_is_missing_is_named() -> None:
    def fit(batch: Batch, maps: Tensor | None) -> MetricSet:
        metrics = build_metrics(["keypoints"], BIRDS)
        metrics.fit(batch, Prediction(LOGITS, maps=maps))
        return metrics

    batch, maps = peaked_set()
    with pytest.raises(UserError, match="'birds' has no key points; drop it from --metrics"):
        build_metrics(["keypoints"], replace(BIRDS, part_names=None))
    with pytest.raises(UserError, match="'keypoints': this model has no part maps; drop it from --metrics"):
        fit(batch, None)
    for lacking in ({"keypoints": None}, {"frame": None}):
        with pytest.raises(UserError, match="'birds' lacks key points or boxes here"):
            fit(replace(batch, **lacking), maps)
