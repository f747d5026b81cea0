"""Which object stands on which background in which split: a function of the files' names, the options and the seed."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import floor
from typing import Literal

from common.errors import UserError
from common.seeds import stable_seed
from datasets.composition.files import KINDS, BackgroundFile, ObjectFile, without_ending
from datasets.types import SPLITS

EvalPlaces = Literal["both", "balanced", "correlated"]
SplitBy = Literal["given", "object", "class"]
Placing = tuple[ObjectFile, int]
"""An object, and how often it was placed before."""


@dataclass(frozen=True)
class PlanOptions:
    """What the set is like."""

    images: Mapping[str, int | None]
    """Images of each split; None: every object is placed once."""
    correlation: float
    """Fraction of the training images of each class on their own kind of place."""
    eval_places: EvalPlaces
    """Of val and test: every object on both kinds of place, half of each class on each, or as in training."""
    balance_classes: bool
    split_by: SplitBy | None
    """None: as the source states, else by object."""
    val_fraction: float
    """Of the objects that are not test objects, where the source states no val."""
    test_fraction: float
    """Of the objects, where the source states no test."""
    seed: int


@dataclass(frozen=True)
class PlannedImage:
    """One image to compose."""

    name: str
    """Path without ending: the object's class and file name, with a number where objects are used more than once."""
    object: ObjectFile
    background: BackgroundFile
    split: str
    pose: int
    """Images of one object with the same number show it at the same place, in the same size."""


def plan_images(
    objects: Sequence[ObjectFile], backgrounds: Sequence[BackgroundFile], options: PlanOptions
) -> list[PlannedImage]:
    """All images, sorted by name.

    Changing the correlation changes the backgrounds of the images that change sides, and nothing else. Raises
    UserError where a split has too few objects or backgrounds.
    """
    placings = {split: _placings(split, each, options) for split, each in split_objects(objects, options).items()}
    needed = {split: sum(map(len, each)) for split, each in placings.items()}
    places = split_backgrounds(backgrounds, needed, options.seed)
    pairs = [
        (object_, background, split, pose)
        for split in SPLITS
        for (object_, pose), background in _on_places(placings[split], places[split], split, options)
    ]
    return _named(pairs)


def split_objects(objects: Sequence[ObjectFile], options: PlanOptions) -> dict[str, list[ObjectFile]]:
    """The objects of each split, disjoint; fractions are taken of each label's objects (or classes)."""
    split_by = options.split_by or ("given" if any(each.split for each in objects) else "object")
    found: dict[str, list[ObjectFile]] = {split: [] for split in SPLITS}
    if split_by == "given":
        if not all(each.split for each in objects):
            raise UserError("--split-by given: the objects' source states no splits; use object or class")
        found = {split: [each for each in objects if each.split == split] for split in SPLITS}
        for split, fraction in (("test", options.test_fraction), ("val", options.val_fraction)):
            if not found[split]:
                found[split], found["train"] = _drawn(found["train"], split, fraction, False, options.seed)
    else:
        by_class = split_by == "class"
        found["test"], rest = _drawn(objects, "test", options.test_fraction, by_class, options.seed)
        found["val"], found["train"] = _drawn(rest, "val", options.val_fraction, by_class, options.seed)
    for split, each in found.items():
        for label, kind in enumerate(KINDS):
            if not any(one.label == label for one in each):
                raise UserError(f"the {split} split has no object that belongs on {kind}; more objects are needed")
    return found


def _drawn(
    objects: Iterable[ObjectFile], purpose: str, fraction: float, by_class: bool, seed: int
) -> tuple[list[ObjectFile], list[ObjectFile]]:
    """A random fraction (at least one object or class) of each label, and the others."""
    taken: set[tuple[int, str]] = set()
    unit_of = {each.name: (each.label, each.category if by_class else each.name) for each in objects}
    for label in (0, 1):
        units = _shuffled({name for of, name in unit_of.values() if of == label}, purpose, seed)
        taken |= {(label, name) for name in units[: max(1, _rounded(len(units) * fraction))]}
    chosen = [each for each in objects if unit_of[each.name] in taken]
    return chosen, [each for each in objects if unit_of[each.name] not in taken]


def _placings(split: str, objects: Sequence[ObjectFile], options: PlanOptions) -> tuple[list[Placing], list[Placing]]:
    """What is placed in a split, for each label; in a shuffled order, again from the start where objects are few."""
    by_label = [[each for each in objects if each.label == label] for label in (0, 1)]
    sizes = [len(each) for each in by_label]
    wanted = options.images[split]
    pairs = split != "train" and options.eval_places == "both"
    if wanted is None:
        counts = [min(sizes)] * 2 if options.balance_classes else sizes
    else:
        if pairs and wanted % 2:
            raise UserError(f"--{split} is {wanted}; it must be even, since every object is placed on both kinds")
        total = wanted // 2 if pairs else wanted
        if total < 2:
            raise UserError(f"--{split} is {wanted}; it must have an object of each class")
        waterbirds = total // 2 if options.balance_classes else _rounded(total * sizes[1] / sum(sizes))
        waterbirds = min(max(1, waterbirds), total - 1)
        counts = [total - waterbirds, waterbirds]
    land, water = (
        [(order[i % len(order)], i // len(order)) for i in range(count)]
        for order, count in (
            (_objects_shuffled(each, options.seed), n) for each, n in zip(by_label, counts, strict=True)
        )
    )
    return land, water


def split_backgrounds(
    backgrounds: Sequence[BackgroundFile], needed: Mapping[str, int], seed: int
) -> dict[str, tuple[list[BackgroundFile], list[BackgroundFile]]]:
    """The backgrounds of each split, land and water, shuffled. Photographs are disjoint between splits.

    Where the source states no splits, a split gets a part of each kind in proportion to the images it needs.
    """
    stated = {each.split is not None for each in backgrounds}
    split_of = {each.photograph: each.split for each in backgrounds}
    for place in (0, 1) if stated != {True} else ():
        photographs = _shuffled({each.photograph for each in backgrounds if each.place == place}, "background", seed)
        spare = len(photographs) - len(SPLITS)
        if spare < 0:
            problem = f"{len(photographs)} {KINDS[place]} backgrounds cannot be shared out to {len(SPLITS)} splits"
            raise UserError(f"{problem}; give at least {len(SPLITS)}")
        val, test = (1 + spare * needed[split] // sum(needed.values()) for split in ("val", "test"))
        for i, photograph in enumerate(photographs):
            split_of[photograph] = "val" if i < val else "test" if i < val + test else "train"
    found: dict[str, tuple[list[BackgroundFile], list[BackgroundFile]]] = {split: ([], []) for split in SPLITS}
    by_name = {each.name: each for each in backgrounds}
    for name in _shuffled(by_name, "order of backgrounds", seed):
        found[str(split_of[by_name[name].photograph])][by_name[name].place].append(by_name[name])
    for split, kinds in found.items():
        for kind, each in zip(KINDS, kinds, strict=True):
            if not each:
                raise UserError(f"the {split} split has no {kind} background; give some")
    return found


def _on_places(
    placings: Sequence[Sequence[Placing]],
    places: Sequence[Sequence[BackgroundFile]],
    split: str,
    options: PlanOptions,
) -> list[tuple[Placing, BackgroundFile]]:
    """The images of a split: objects with their backgrounds.

    On each kind of place the objects that belong there take the backgrounds from the front, the others from the back,
    the last objects first. So with another correlation the other images keep their backgrounds.
    """
    found = []
    for label, each in enumerate(placings):
        own, other = places[label], places[1 - label]
        if split == "train" or options.eval_places == "correlated":
            agree = _rounded(len(each) * options.correlation)
        else:
            agree = len(each) if options.eval_places == "both" else _rounded(len(each) / 2)
        both = split != "train" and options.eval_places == "both"
        found += [(placing, own[i % len(own)]) for i, placing in enumerate(each[:agree])]
        turned = each[::-1] if both else each[agree:][::-1]
        found += [(placing, other[-1 - i % len(other)]) for i, placing in enumerate(turned)]
    return found


def _named(pairs: Sequence[tuple[ObjectFile, BackgroundFile, str, int]]) -> list[PlannedImage]:
    uses = Counter(each.name for each, *_ in pairs)
    numbered = max(uses.values()) > 1
    seen: Counter[str] = Counter()
    images = []
    for object_, background, split, pose in pairs:
        end = f"_{seen[object_.name]}" if numbered else ""
        seen[object_.name] += 1
        images.append(PlannedImage(f"{object_.category}/{object_.stem}{end}", object_, background, split, pose))
    return sorted(images, key=lambda image: image.name)


def _rounded(value: float) -> int:
    """To the nearest integer, halves up."""
    return floor(value + 0.5)


def _shuffled(names: Iterable[str], purpose: str, seed: int) -> list[str]:
    """The names in a random order: that of any two depends on them, the purpose and the seed alone."""
    return sorted(names, key=lambda name: (stable_seed(purpose, without_ending(name), seed), name))


def _objects_shuffled(objects: Sequence[ObjectFile], seed: int) -> list[ObjectFile]:
    by_name = {each.name: each for each in objects}
    return [by_name[name] for name in _shuffled(by_name, "order of objects", seed)]
