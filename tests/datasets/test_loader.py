"""Order, exact resume, unreadable images, and equal batches for any number of workers."""

import pickle
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from common.errors import UserError
from datasets import (
    Batch,
    DataConfig,
    DatasetInfo,
    RawSample,
    Split,
    build_transform,
    collate,
    eval_loader,
    load_split,
    steps_per_epoch,
    train_loader,
)
from datasets.formats.images import UnreadableImageError
from datasets.readers.files import FileDataset, Record
from datasets.readers.mask_folder import MaskedDataset
from datasets.transforms import STEPS

CONFIG = DataConfig(image_size=8, augmentation="cub_original")


class Images:
    """`count` random images in memory, some of which cannot be read."""

    info = DatasetInfo("images", ("a", "b"))

    def __init__(self, count: int, broken: Iterable[int] = ()) -> None:
        self.labels = [i % 2 for i in range(count)]
        self.broken = frozenset(broken)
        self.pixels = np.random.default_rng(0).integers(0, 256, (count, 10, 12, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> RawSample:
        if index in self.broken:
            raise UnreadableImageError(f"{index}.jpg", "broken")
        return RawSample(self.pixels[index], self.labels[index], f"{index}.jpg", boxes=np.array([[1.0, 2, 8, 9]]))


def split_of(count: int, broken: Iterable[int] = (), *, train: bool = True, seed: int = 0) -> Split:
    return Split(Images(count, broken), build_transform(CONFIG, train), train=train, seed=seed)


def epoch_of(split: Split, epoch: int = 0, seed: int = 0, workers: int = 0, start: int = 0, **more: int) -> list[Batch]:
    loader = train_loader(
        split, batch_size=4, seed=seed, epoch=epoch, workers=workers, start_batch=start, **more  # type: ignore[arg-type]
    )  # fmt: skip
    batches = list(loader)
    assert len(batches) == len(loader)
    return batches


def same(a: list[Batch], b: list[Batch]) -> bool:
    pairs = zip(a, b, strict=True)
    return all(x.paths == y.paths and torch.equal(x.image, y.image) and torch.equal(x.label, y.label) for x, y in pairs)


def paths(batches: list[Batch]) -> list[str]:
    return [path for batch in batches for path in batch.paths]


def test_an_epoch_is_a_permutation_of_seed_and_epoch() -> None:
    split = split_of(20)
    first = epoch_of(split)
    assert sorted(paths(first)) == sorted(f"{i}.jpg" for i in range(20)) != paths(first)
    assert same(first, epoch_of(split))
    assert paths(first) != paths(epoch_of(split, epoch=1)) and paths(first) != paths(epoch_of(split, seed=1))


def test_augmentation_depends_on_seed_epoch_and_index() -> None:
    split, again, other = split_of(4), split_of(4), split_of(4, seed=1)
    assert torch.equal(split[3, 1].image, again[3, 1].image)
    assert not torch.equal(split[3, 1].image, split[4, 1].image)
    assert not torch.equal(split[3, 1].image, other[3, 1].image)
    assert torch.equal(split[1].image, split[0, 1].image)


def test_the_last_incomplete_batch_is_dropped() -> None:
    split = split_of(10)
    assert [len(batch) for batch in epoch_of(split)] == [4, 4]
    assert steps_per_epoch(split, 4) == 2


@pytest.mark.parametrize("start", [0, 1, 3, 5])
def test_resume_gives_the_tail(start: int) -> None:
    split = split_of(20)
    assert same(epoch_of(split, epoch=2, start=start), epoch_of(split, epoch=2)[start:])


def test_workers_change_nothing() -> None:
    split = split_of(12, broken=[3])
    assert same(epoch_of(split), epoch_of(split, workers=2))


def test_workers_change_nothing_with_timm() -> None:
    transform = build_transform(DataConfig(image_size=8, augmentation="timm"), train=True)
    split = Split(Images(8), transform, train=True, seed=0)
    assert same(epoch_of(split), epoch_of(split, workers=2))


@pytest.mark.parametrize("workers", [0, 1])
def test_global_random_states_are_unchanged(workers: int) -> None:
    split = split_of(8)
    states = random.getstate(), pickle.dumps(np.random.get_state()), torch.get_rng_state()
    epoch_of(split, workers=workers)
    assert random.getstate() == states[0] and pickle.dumps(np.random.get_state()) == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_unreadable_images_are_skipped_and_counted_in_training() -> None:
    batches = epoch_of(split_of(12, broken=[2, 7]))
    assert sorted(path for batch in batches for path in batch.skipped) == ["2.jpg", "7.jpg"]
    assert len(paths(batches)) == 10 and not {"2.jpg", "7.jpg"} & set(paths(batches))
    assert all(len(batch) + len(batch.skipped) == 4 and len(batch.image) == len(batch.label) for batch in batches)


def in_own_loader(split: Split, **more: Any) -> list[torch.Tensor]:
    """The images of three epochs, in the order of the split, from a plain DataLoader."""
    loader = DataLoader(split, batch_size=4, collate_fn=collate, **more)
    epochs = []
    for epoch in range(3):
        split.set_epoch(epoch)
        epochs.append(torch.cat([batch.image for batch in loader]))
    return epochs


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"num_workers": 1, "persistent_workers": True},
        pytest.param(
            {"num_workers": 1, "persistent_workers": True, "multiprocessing_context": "spawn"}, marks=pytest.mark.slow
        ),
    ],
    ids=["no workers", "persistent", "spawned"],
)
def test_a_split_in_a_loader_of_your_own(more: dict[str, Any]) -> None:
    split = split_of(6)
    epochs = in_own_loader(split, **more)
    for epoch, images in enumerate(epochs):
        assert torch.equal(images, torch.stack([split[epoch, i].image for i in range(6)]))
    assert not torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[1], epochs[2])


def test_unreadable_images_are_named_once_and_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("datasets.loader._NAMED_SKIPPED", set())
    split = split_of(24, broken=[2, 7])
    for epoch in range(2):
        epoch_of(split, epoch=epoch)
    assert sorted(record.message for record in caplog.records) == [
        *["2 of 24 images could not be read"] * 2, *[f"cannot read {i}.jpg; it is left out of training" for i in (2, 7)]
    ]  # fmt: skip


def test_too_many_unreadable_images_are_an_error() -> None:
    split = split_of(20, broken=range(1, 20, 5))  # a fifth
    split.max_unreadable = 0.2
    assert sum(len(batch.skipped) for batch in epoch_of(split)) == 4
    split.max_unreadable = 0.19
    problem = (
        r"4 of the 20 images of an epoch cannot be read, more than data\.max_unreadable=0\.19; the first: \d+\.jpg"
    )
    with pytest.raises(UserError, match=problem):
        epoch_of(split)
    assert split.over(split.raw).max_unreadable == 0.19
    configured = load_split(DataConfig(name="digits", max_unreadable=0.3), "train", train=True, seed=0)
    assert configured.max_unreadable == 0.3


@pytest.mark.parametrize("workers", [0, 1])
def test_a_wholly_unreadable_batch_is_an_error(workers: int) -> None:
    with pytest.raises(UserError, match=r"no image of a training batch can be read; first: .*\d\.jpg") as caught:
        epoch_of(split_of(8, broken=range(8)), workers=workers)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_an_error_in_evaluation(workers: int) -> None:
    loader = eval_loader(split_of(12, broken=[7], train=False), batch_size=4, workers=workers)
    with pytest.raises(UserError, match=r"7\.jpg") as caught:
        list(loader)
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_another_user_error_is_never_a_skip(workers: int) -> None:
    split = split_of(8)

    def read(index: int) -> RawSample:
        raise UserError("mask and image differ in size")

    split.raw.read = read  # type: ignore[method-assign]
    with pytest.raises(UserError, match="^mask and image differ in size$"):
        epoch_of(split, workers=workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_is_in_order_and_whole(workers: int) -> None:
    batches = list(eval_loader(split_of(11, train=False), batch_size=4, workers=workers))
    assert paths(batches) == [f"{i}.jpg" for i in range(11)]
    assert [len(batch) for batch in batches] == [4, 4, 3]
    assert batches[0].boxes is not None and batches[0].boxes[0].shape == (1, 4)


def test_an_epoch_is_divided_among_processes() -> None:
    split = split_of(19)
    parts = [epoch_of(split, rank=rank, world_size=2) for rank in range(2)]
    assert [len(part) for part in parts] == [2, 2]
    assert len(set(paths(parts[0] + parts[1]))) == 16
    blocks = [
        list(eval_loader(split_of(5, train=False), batch_size=2, workers=0, rank=r, world_size=2)) for r in (0, 1)
    ]
    assert [paths(block) for block in blocks] == [["0.jpg", "1.jpg", "2.jpg"], ["3.jpg", "4.jpg"]]


def test_too_few_images_for_a_batch() -> None:
    with pytest.raises(UserError, match="3 images.*data.batch_size to at most 3"):
        train_loader(split_of(3), batch_size=4, seed=0, epoch=0, workers=0)
    with pytest.raises(UserError, match="on 2 processes.*at most 3"):
        train_loader(split_of(7), batch_size=4, seed=0, epoch=0, workers=0, world_size=2)


def test_files_on_disk(spoiled: Path) -> None:
    """The whole way: a truncated file is skipped in training and an error in evaluation."""
    config = DataConfig(name="cub", root=str(spoiled), image_size=16, augmentation="flip")
    train = load_split(config, "train", train=True, seed=0)
    index = 5
    broken = Path(train[index].path)
    broken.write_bytes(broken.read_bytes()[:300])
    batches = list(train_loader(train, batch_size=len(train), seed=0, epoch=0, workers=0))
    assert batches[0].skipped == (str(broken),) and len(batches[0]) == len(train) - 1
    with pytest.raises(UserError, match=broken.name):
        list(eval_loader(load_split(config, "train", train=False, seed=0), batch_size=8, workers=1))


def test_unknown_data_set() -> None:
    with pytest.raises(UserError, match=r"unknown data set \(--data.name\) 'waterbird' \(did you mean 'waterbirds'"):
        load_split(DataConfig(name="waterbird"), "train", train=True, seed=0)


def test_pinning_keeps_everything_but_tensors() -> None:
    batch = epoch_of(split_of(4))[0]
    if torch.cuda.is_available():
        batch = batch.pin_memory()
        assert batch.image.is_pinned()
    assert batch.paths and batch.boxes


@pytest.mark.parametrize("augmentation", sorted(STEPS))
def test_without_annotations_images_are_the_same_and_masks_are_not_read(augmentation: str, tmp_path: Path) -> None:
    info, config = DatasetInfo("files", ("a",)), DataConfig(image_size=16, augmentation=augmentation)  # type: ignore[arg-type]
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    masks = tmp_path / "masks"
    masks.mkdir()
    Image.fromarray(pixels[..., 0]).save(masks / "image.png")
    keypoints, boxes = np.array([[3.0, 5, 1], [12, 9, 0]]), np.array([[2.0, 3, 20, 30]])
    record = Record(tmp_path / "image.png", 0, mask=masks / "image.png", keypoints=keypoints, boxes=boxes)
    raw = MaskedDataset(FileDataset(info, [record], "train"), masks) if augmentation == "flip" else None
    split = Split(raw or FileDataset(info, [record], "train"), build_transform(config, True), train=True, seed=0)
    whole = [split[epoch, 0] for epoch in range(4)]
    split.annotations = False
    bare = [split.over(split.raw)[epoch, 0] for epoch in range(4)]
    assert all(torch.equal(a.image, b.image) for a, b in zip(whole, bare, strict=True))
    assert all(sample.mask is not None and sample.keypoints is not None for sample in whole)
    (masks / "image.png").write_text("broken")
    if augmentation == "foreground_crop":  # it needs the mask
        assert all(sample.mask is not None for sample in bare)
        with pytest.raises(UnreadableImageError):
            split[0, 0]
    else:
        again = split[0, 0]
        assert again.mask is again.keypoints is again.boxes is again.part_labels is None
        assert torch.equal(again.image, whole[0].image)
