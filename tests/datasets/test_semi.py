"""Which images keep their labels, and the batches of each step."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.errors import UserError
from datasets import DataConfig, DatasetInfo, Split, load_split
from datasets.config import SemiConfig, SyntheticConfig
from datasets.readers.files import FileDataset, Record
from datasets.semi_supervised import PartlyLabelled, SemiSupervisedSampler, split_labels
from datasets.types import UNLABELLED, Batch

CONFIG = DataConfig(image_size=32, augmentation="flip", synthetic=SyntheticConfig(train_images=40))


@pytest.fixture(scope="module")
def birds() -> Split:
    return load_split(CONFIG, "train", train=True, seed=0)


def indices(split: Split) -> list[int]:
    return list(split.raw.indices)  # type: ignore[attr-defined]


def sampler(birds: Split, **keys: Any) -> SemiSupervisedSampler:
    """12 labelled images in batches of 4, the 28 others in batches of 5."""
    config = SemiConfig(**{"images_per_class": 6, "batch_size": 5} | keys)
    return SemiSupervisedSampler(*split_labels(birds, config, 0), 4, config, seed=0)


def test_images_per_class_and_the_rest(birds: Split) -> None:
    few, rest = split_labels(birds, SemiConfig(images_per_class=6), 0)
    assert Counter(few.labels) == {0: 6, 1: 6}
    assert sorted(indices(few) + indices(rest)) == list(range(40))
    assert indices(split_labels(birds, SemiConfig(images_per_class=6), 0)[0]) == indices(few)
    assert indices(split_labels(birds, SemiConfig(images_per_class=6), 1)[0]) != indices(few)


def test_where_unlabelled_images_come_from(birds: Split) -> None:
    few, same = split_labels(birds, SemiConfig(images_per_class=6, unlabelled="labelled"), 0)
    assert indices(same) == indices(few)
    everything, again = split_labels(birds, SemiConfig(unlabelled="labelled"), 0)
    assert indices(everything) == indices(again) == list(range(40))
    rest = indices(split_labels(birds, SemiConfig(images_per_class=6), 0)[1])
    some = indices(split_labels(birds, SemiConfig(images_per_class=6, unlabelled_size=9), 0)[1])
    assert len(some) == 9 and set(some) < set(rest)


def test_too_few_images(birds: Split) -> None:
    with pytest.raises(UserError, match="data.semi.images_per_class: there are fewer than 21 images of"):
        split_labels(birds, SemiConfig(images_per_class=21), 0)
    with pytest.raises(UserError, match="data.semi.unlabelled: every training image keeps its label"):
        split_labels(birds, SemiConfig(mode="alternating"), 0)
    assert len(split_labels(birds, SemiConfig(), 0)[1]) == 0  # supervised training needs none


def several(shown: list[tuple[int, ...]], tmp_path: Path) -> Split:
    """A split of multi-label records with these classes."""
    (tmp_path / "x.jpg").touch()
    records = [Record(tmp_path / "x.jpg", classes[0], present=np.isin(np.arange(3), classes)) for classes in shown]
    info = DatasetInfo("several", ("a", "b", "c"), multi_label=True)
    return Split(FileDataset(info, records, "train"), lambda raw, seed: None, train=True, seed=0)  # type: ignore[arg-type, return-value]


def test_several_classes_in_an_image(tmp_path: Path) -> None:
    shown = [(0,), (0, 1), (1,), (1, 2), (2,), (0,), (2,), (1,), (0, 1, 2)]
    split = several(shown, tmp_path)
    for seed in range(8):
        few, _ = split_labels(split, SemiConfig(images_per_class=2), seed)
        assert Counter(shown[i] for i in indices(few)) == {(0,): 2, (1,): 2, (2,): 2}
        mixed, _ = split_labels(split, SemiConfig(images_per_class=2, fully_balanced=False), seed)
        counts = Counter(c for i in indices(mixed) for c in shown[i])
        assert max(counts.values()) == 2
        left_out = set(range(9)) - set(indices(mixed))
        assert all(any(counts[c] == 2 for c in shown[i]) for i in left_out)  # no image could be added
    with pytest.raises(UserError, match="there are fewer than 3 images of a"):
        split_labels(split, SemiConfig(images_per_class=3), 0)


def test_labels_of_the_others_are_hidden(birds: Split) -> None:
    few, rest = split_labels(birds, SemiConfig(images_per_class=6), 0)
    both = PartlyLabelled(few.raw, rest.raw)
    assert both.labels == [*few.labels, *[UNLABELLED] * 28]
    assert both.read(3).label == few.labels[3]
    hidden = both.read(20)
    assert hidden.label == UNLABELLED and np.array_equal(hidden.image, rest.raw.read(8).image)


@pytest.mark.parametrize(
    ("keys", "steps"),
    [
        ({"mode": "unsupervised"}, 28 // 5),
        ({"mode": "alternating", "alpha": 2.0}, int(2 * 12 / 4 + 28 / 5)),
        ({"mode": "alternating", "alpha": 1.0, "unlabelled_size": 3}, int(12 / 4 + 3 / 5)),
        ({"mode": "combining"}, 12 // 4),
    ],
)
def test_steps_of_an_epoch(birds: Split, keys: dict[str, Any], steps: int) -> None:
    source = sampler(birds, **keys)
    assert source.steps == steps
    batches = list(source.loader(0, 0, workers=0))
    assert len(batches) == steps
    kinds = {(len(batch) - batch.unlabelled, batch.unlabelled) for batch in batches}
    unlabelled = min(5, keys.get("unlabelled_size", 5))
    allowed = {
        "unsupervised": {(0, 5)}, "alternating": {(4, 0), (0, unlabelled)}, "combining": {(4, 5)},
    }[keys["mode"]]  # fmt: skip
    assert kinds <= allowed
    for batch in batches:
        assert (batch.label == UNLABELLED).tolist() == [i >= len(batch) - batch.unlabelled for i in range(len(batch))]


def test_both_kinds_take_turns_by_their_weight(birds: Split) -> None:
    source = sampler(birds, mode="alternating", alpha=7.0)
    kinds = [step[0][1] < 12 for epoch in range(20) for step in source.batches(epoch)]
    assert len(kinds) == 20 * int(7 * 12 / 4 + 28 / 5)
    assert np.mean(kinds) == pytest.approx(7 * 12 / (7 * 12 + 28), abs=0.06)


def same(a: Batch, b: Batch) -> bool:
    return a.paths == b.paths and torch.equal(a.image, b.image) and torch.equal(a.label, b.label)


@pytest.mark.parametrize("mode", ["unsupervised", "alternating", "combining"])
def test_an_epoch_is_a_function_of_seed_and_epoch(birds: Split, mode: Any) -> None:
    source = sampler(birds, mode=mode)
    whole = list(source.loader(1, 0, workers=0))
    tail = list(sampler(birds, mode=mode).loader(1, 2, workers=2))
    assert len(tail) == len(whole) - 2 and all(same(a, b) for a, b in zip(whole[2:], tail, strict=True))
    other = list(source.loader(2, 0, workers=0))
    assert not all(same(a, b) for a, b in zip(whole, other, strict=True))


def test_a_pass_is_over_all_images_and_the_next_one_is_new(birds: Split) -> None:
    source = sampler(birds, mode="combining", batch_size=3, unlabelled_size=6)
    batches = list(source.loader(0, 0, workers=0))  # 3 steps; 2 make a pass over the 6 unlabelled images
    passes = [batch.paths[4:] for batch in batches]
    assert len(set(passes[0] + passes[1])) == 6 and set(passes[2]) < set(passes[0] + passes[1])
    turns = {key[0] for step in source.batches(0) for key in step[4:]}
    assert len(turns) == 2  # another augmentation


def test_labelled_images_of_a_mixed_batch(birds: Split) -> None:
    batch = next(iter(sampler(birds, mode="combining").loader(0, 0, workers=0)))
    known = replace(batch, skipped=("lost.jpg",)).with_labels()
    assert len(known) == 4 and known.unlabelled == 0 and known.skipped == ("lost.jpg",)
    assert torch.equal(known.image, batch.image[:4]) and torch.equal(known.label, batch.label[:4])
    assert known.mask is not None and len(known.mask) == 4 and known.boxes is not None and len(known.boxes) == 4
    with pytest.raises(ValueError, match="no image of this batch has a label"):
        next(iter(sampler(birds, mode="unsupervised").loader(0, 0, workers=0))).with_labels()
