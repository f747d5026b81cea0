"""Part use: cases computed by hand, and against loops over patches."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from common.errors import UserError
from datasets.types import Batch
from metrics import Prediction, build_metrics
from metrics.parts.part_maps import MOST_CHANNELS
from tests.metrics.cases import BIRDS, feed, random_set


def measured(maps: Tensor, size: int = 2) -> dict[str, float]:
    count = len(maps)
    batch = Batch(torch.zeros(count, 3, 8, 8), torch.zeros(count, dtype=torch.int64), ("x",) * count)
    return feed(build_metrics(["part_use"], BIRDS), batch, Prediction(torch.zeros(count, 2), maps=maps), size)


def labelled(channels: list[list[int]], parts: int) -> Tensor:
    """Maps [B, K+1, 1, N] whose largest channels are given for each image and patch."""
    return one_hot(torch.tensor(channels), parts + 1).movedim(-1, 1).unsqueeze(2).float()


def test_by_hand() -> None:
    # Background is 4. Part 0 holds 2 + 1 patches, part 1 none + 1, part 3 none; of 4 patches in all.
    results = measured(labelled([[0, 0, 4, 4], [0, 1, 4, 4], [4, 4, 4, 4]], parts=4))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert results == {
        "parts_used": 2.0,
        "part_entropy": pytest.approx(entropy / math.log(4), abs=1e-15),
        "largest_part": 0.75,
        "parts_per_image": 1.0,
        "count/foreground_patches": 4.0,
    }


def test_one_part_has_everything() -> None:
    results = measured(labelled([[2, 2, 4], [4, 2, 4]], parts=4))
    assert list(results.values()) == [1.0, 0.0, 1.0, 1.0, 3.0]


def test_all_parts_hold_equally_many() -> None:
    results = measured(labelled([[0, 1, 2], [2, 0, 1]], parts=3))
    assert list(results.values()) == [3.0, pytest.approx(1.0, abs=1e-15), 1 / 3, 3.0, 6.0]


@pytest.mark.parametrize(("patches", "used"), [(99, 2.0), (100, 1.0)])
def test_a_part_is_used_from_one_percent_of_the_foreground(patches: int, used: float) -> None:
    """1 of 100 patches is enough, 1 of 101 is not; background does not count."""
    assert measured(labelled([[0] * patches + [1] + [2] * 50], parts=2))["parts_used"] == used


def test_a_tie_with_the_background_is_foreground_as_in_the_mask() -> None:
    assert measured(torch.full((1, 3, 1, 4), 1 / 3))["count/foreground_patches"] == 4


def test_against_loops() -> None:
    batch, prediction = random_set(BIRDS, n=23, parts=5)
    maps = prediction.maps
    results = feed(build_metrics(["part_use"], BIRDS), batch, prediction, 4)
    per_image = [Counter(k for k in image.argmax(0).flatten().tolist() if k < 5) for image in maps]
    held = sum(per_image, Counter())
    total = sum(held.values())
    assert results["count/foreground_patches"] == total
    assert results["parts_per_image"] == sum(map(len, per_image)) / 23
    assert results["largest_part"] == max(held.values()) / total
    entropy = -sum(n / total * math.log(n / total) for n in held.values()) / math.log(5)
    assert results["part_entropy"] == pytest.approx(entropy, abs=1e-14)


def test_nothing_and_one_part() -> None:
    empty = measured(labelled([[2, 2]], parts=2))
    assert empty.pop("count/foreground_patches") == empty.pop("parts_per_image") == 0
    assert all(math.isnan(value) for value in empty.values())
    single = measured(labelled([[0, 1]], parts=1))
    assert single["parts_used"] == single["largest_part"] == 1 and math.isnan(single["part_entropy"])


def test_a_map_that_is_not_finite_is_never_a_number() -> None:
    maps = labelled([[0, 1, 2], [0, 1, 2]], parts=2)
    maps[1, 0, 0, 0] = math.nan
    results = measured(maps, size=1)
    assert all(math.isnan(value) for key, value in results.items() if not key.startswith("count/"))


def test_what_is_missing_is_named() -> None:
    batch, prediction = random_set(BIRDS, n=4)
    metrics = build_metrics(["part_use"], replace(BIRDS, part_names=None))  # needs no annotations
    metrics.update(replace(batch, mask=None, keypoints=None, part_labels=None), prediction)
    with pytest.raises(UserError, match="'part_use': this model has no part maps; drop it from --metrics"):
        metrics.update(batch, replace(prediction, maps=None))
    with pytest.raises(UserError, match="'part_use' supports 255 parts, the model has 256"):
        measured(torch.zeros(4, MOST_CHANNELS + 1, 2, 2))
