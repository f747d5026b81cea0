"""Which object stands on which background in which split."""

import csv
import random
from collections import Counter
from collections.abc import Sequence

import pytest

from common.errors import UserError
from datasets.composition.backgrounds import listed_backgrounds
from datasets.composition.files import ObjectFile
from datasets.composition.objects import find_objects
from datasets.composition.plan import PlannedImage, PlanOptions, plan_images
from datasets.composition.readme import group_of
from datasets.composition.recipe import PUBLISHED_AS_WATERBIRDS, WATERBIRDS, bare_name, published_label
from datasets.types import SPLITS
from tests.datasets.composition.photographs import SHARED, SOURCES, background_files, object_files

PUBLISHED = SHARED / "published" / "waterbirds_metadata.csv"
ALL = dict.fromkeys(SPLITS)


def options(**changes: object) -> PlanOptions:
    defaults: dict[str, object] = {
        "images": ALL, "correlation": 0.95, "eval_places": "both", "balance_classes": False, "split_by": None,
        "val_fraction": 0.2, "test_fraction": 0.3, "seed": 0,
    }  # fmt: skip
    return PlanOptions(**{**defaults, **changes})  # type: ignore[arg-type]


def groups(images: Sequence[PlannedImage]) -> dict[str, list[int]]:
    counts = Counter((image.split, group_of(image)) for image in images)
    return {split: [counts[split, group] for group in range(4)] for split in SPLITS}


def in_splits(*sizes: tuple[int, int]) -> list[ObjectFile]:
    starts = [sum(max(size) for size in sizes[:i]) for i in range(3)]
    return [
        each
        for split, size, start in zip(SPLITS, sizes, starts, strict=True)
        for each in object_files(*size, split=split, start=start)
    ]


def test_the_published_numbers() -> None:
    """Group sizes of the published metadata.csv, from its numbers of objects; every background is used once."""
    objects = in_splits((3711, 1084), (904, 295), (4510, 1284))
    images = plan_images(objects, background_files(10_000, 10_000), options(eval_places="balanced"))
    assert groups(images) == {
        "train": [3525, 186, 54, 1030],
        "val": [452, 452, 147, 148],
        "test": [2255, 2255, 642, 642],
    }
    assert max(Counter(image.background.name for image in images).values()) == 1
    assert [image.name for image in images] == sorted(f"{each.category}/{each.stem}" for each in objects)


def test_val_is_drawn_from_train() -> None:
    """CUB's numbers: 4615 and 1379 training images; 1,199 of all become val, as published."""
    objects = in_splits((4615, 1379), (0, 0), (4510, 1284))
    images = plan_images(objects, background_files(10_000, 10_000), options(eval_places="balanced"))
    assert Counter(image.split for image in images) == {"train": 4795, "val": 1199, "test": 5794}
    assert groups(images) == {
        "train": [3507, 185, 55, 1048],
        "val": [462, 461, 138, 138],
        "test": [2255, 2255, 642, 642],
    }
    assert max(Counter(image.background.name for image in images).values()) == 1


def test_a_source_that_only_states_train() -> None:
    images = plan_images(object_files(20, 10, "train"), background_files(9, 9), options(eval_places="balanced"))
    assert Counter(image.split for image in images) == {"train": 17, "val": 4, "test": 9}


@pytest.mark.skipif(not PUBLISHED.exists(), reason="no shared/data/published/waterbirds_metadata.csv")
def test_published_species() -> None:
    """Every line of the published metadata.csv."""
    with open(PUBLISHED) as file:
        rows = [(row["img_filename"].split("/")[0], int(row["y"])) for row in csv.DictReader(file)]
    assert len(rows) == 11788 and all(published_label(category) == y for category, y in rows)
    assert {bare_name(category) for category, _ in rows} >= WATERBIRDS | PUBLISHED_AS_WATERBIRDS


def test_number_of_species() -> None:
    assert (len(WATERBIRDS), len(PUBLISHED_AS_WATERBIRDS), len(WATERBIRDS | PUBLISHED_AS_WATERBIRDS)) == (43, 3, 46)
    assert [published_label(name) for name in ("087.Mallard", "Mallard", "102.Western_Wood_Pewee", "004.Ani")] == [
        1,
        1,
        1,
        0,
    ]
    assert bare_name("St.Mallard") == "St.Mallard"


@pytest.mark.skipif(not SOURCES.exists(), reason="no shared/data/real_birds")
def test_real_birds() -> None:
    """The group sizes of the composed set beside the sources."""
    objects = find_objects(SOURCES / "objects.csv", None, None, published=False)
    images = plan_images(objects, listed_backgrounds(SOURCES / "backgrounds.csv"), options())
    assert groups(images) == {"train": [407, 21, 21, 402], "val": [79, 79, 83, 83], "test": [143, 143, 144, 144]}


@pytest.mark.parametrize(
    ("eval_places", "test"),
    [("both", [12, 12, 6, 6]), ("balanced", [6, 6, 3, 3]), ("correlated", [9, 3, 1, 5])],
)
def test_groups(eval_places: str, test: list[int]) -> None:
    objects = in_splits((40, 20), (4, 4), (12, 6))
    images = plan_images(objects, background_files(20, 20), options(eval_places=eval_places, correlation=0.75))
    assert groups(images)["train"] == [30, 10, 5, 15] and groups(images)["test"] == test


@pytest.mark.parametrize("correlation", [0, 0.5, 1])
def test_correlation(correlation: float) -> None:
    images = plan_images(in_splits((8, 8), (4, 4), (4, 4)), background_files(9, 9), options(correlation=correlation))
    agree = 8 * correlation
    assert groups(images)["train"] == [agree, 8 - agree, 8 - agree, agree]


def test_numbers_of_images() -> None:
    objects = in_splits((40, 20), (4, 4), (12, 6))
    wanted = {"train": 30, "val": 8, "test": None}
    plain = groups(plan_images(objects, background_files(20, 20), options(images=wanted, correlation=1)))
    assert plain == {"train": [20, 0, 0, 10], "val": [2, 2, 2, 2], "test": [12, 12, 6, 6]}
    balanced = plan_images(
        objects, background_files(20, 20), options(images=wanted, correlation=1, balance_classes=True)
    )
    assert groups(balanced) == {"train": [15, 0, 0, 15], "val": [2, 2, 2, 2], "test": [6, 6, 6, 6]}
    assert len({image.object.name for image in balanced if image.split == "train"}) == 30


def test_objects_are_used_again() -> None:
    """Each equally often, in another pose, under names of their own."""
    wanted = {"train": 32, "val": None, "test": None}
    images = plan_images(in_splits((4, 4), (2, 2), (2, 2)), background_files(9, 9), options(images=wanted))
    train = [image for image in images if image.split == "train"]
    assert set(Counter(image.object.name for image in train).values()) == {4}
    assert len({(image.object.name, image.pose) for image in train}) == 32
    assert len({image.name for image in images}) == len(images) == 32 + 16
    assert {image.pose for image in images if image.split == "test"} == {0}  # both places: one pose


@pytest.mark.parametrize(("split_by", "train", "val"), [("object", 33, 9), ("class", 34, 8)])
def test_drawn_splits(split_by: str, train: int, val: int) -> None:
    images = plan_images(object_files(40, 20), background_files(30, 40), options(split_by=split_by, images=ALL))
    unit = (lambda each: each.name) if split_by == "object" else (lambda each: each.category)
    objects = [{unit(image.object) for image in images if image.split == split} for split in SPLITS]
    photographs = [{image.background.photograph for image in images if image.split == split} for split in SPLITS]
    for sets in (objects, photographs):
        assert all(sets) and sum(map(len, sets)) == len(set().union(*sets))
    sizes = Counter(image.split for image in images)
    assert sizes == {"train": train, "val": 2 * val, "test": 2 * 18}


def test_splits_that_the_source_states_can_be_replaced() -> None:
    objects = in_splits((10, 10), (2, 2), (2, 2))
    given, drawn = (plan_images(objects, background_files(9, 9), options(split_by=each)) for each in ("given", "class"))
    assert all(image.split == image.object.split for image in given)
    assert any(image.split != image.object.split for image in drawn)


def test_another_correlation_changes_only_what_changes_sides() -> None:
    objects, backgrounds = in_splits((40, 30), (4, 6), (8, 5)), background_files(9, 9)
    low, middle, high = (
        {each.name: each for each in plan_images(objects, backgrounds, options(correlation=each))}
        for each in (0.8, 0.9, 1)
    )
    assert low.keys() == middle.keys() == high.keys()
    turned = [
        {name for name, each in images.items() if each.split == "train" and each.background.place != each.object.label}
        for images in (low, middle, high)
    ]
    assert turned[0] > turned[1] > turned[2] == set()
    for images, names in ((low, turned[0]), (middle, turned[1])):
        assert {name for name in high if images[name] != high[name]} == names


def test_backgrounds_are_used_equally_often() -> None:
    images = plan_images(in_splits((40, 30), (4, 6), (8, 5)), background_files(9, 12), options(correlation=0.8))
    for split in SPLITS:
        for place in (0, 1):
            names = [each.background.name for each in images if (each.split, each.background.place) == (split, place)]
            uses = Counter(names).values()
            assert max(uses) - min(uses) <= 2


def test_the_order_of_the_files_does_not_matter() -> None:
    objects, backgrounds = object_files(20, 20), background_files(20, 20)
    first = plan_images(objects, backgrounds, options())
    random.Random(1).shuffle(objects)
    random.Random(2).shuffle(backgrounds)
    assert plan_images(objects, backgrounds, options()) == first
    assert plan_images(objects, backgrounds, options(seed=1)) != first


@pytest.mark.parametrize(
    ("land", "water", "backgrounds", "changes", "message"),
    [
        (9, 9, (4, 20), {}, "2 land backgrounds cannot be shared out to 3 splits"),
        (2, 9, (20, 20), {}, "the train split has no object that belongs on land"),
        (9, 9, (20, 20), {"split_by": "given"}, "--split-by given: the objects' source states no splits"),
        (9, 9, (20, 20), {"images": {**ALL, "test": 5}}, "--test is 5; it must be even"),
        (9, 9, (20, 20), {"images": {**ALL, "val": 2}}, "--val is 2; it must have an object of each class"),
    ],
)
def test_too_few(land: int, water: int, backgrounds: tuple[int, int], changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan_images(object_files(land, water), background_files(*backgrounds), options(**changes))


def test_a_split_without_backgrounds() -> None:
    backgrounds = [
        *background_files(4, 4, "train"),
        *background_files(4, 4, "test", 4),
        *background_files(2, 0, "val", 8),
    ]
    with pytest.raises(UserError, match="the val split has no water background"):
        plan_images(object_files(9, 9), backgrounds, options())
