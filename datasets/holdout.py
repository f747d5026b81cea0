"""Validation splits held out of the training split, for data sets that publish none."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from common.errors import UserError
from common.seeds import stable_seed
from datasets.config import DataConfig

T = TypeVar("T", int, str)


def check_fraction(name: str, split: str, config: DataConfig) -> None:
    """Raise UserError, except for "test", unless 0 <= data.val_fraction < 1, and above 0 for split "val"."""
    if split == "test":
        return
    if not 0 <= config.val_fraction < 1 or (split == "val" and config.val_fraction == 0):
        raise UserError(f"data.val_fraction is {config.val_fraction}; {name}'s val split needs one between 0 and 1")


def split_origin(split: str, config: DataConfig) -> str:
    """`DatasetInfo.split_origin` for a data set whose val is held out of its training split."""
    if split == "test" or config.val_fraction == 0:
        return "published"
    if split == "train":
        return "published, without what is held out for val"
    return f"held out: {config.val_fraction:g} of every class of the published training split, data.seed {config.seed}"


def hold_out(keys: Sequence[T], label: int, config: DataConfig) -> set[T]:
    """A random fraction of one class's keys: at least one but never all of them (none of a single key).

    Depends on data.seed, the label and the order of the keys. Empty where data.val_fraction is 0.
    """
    if config.val_fraction == 0:
        return set()
    count = min(max(1, round(len(keys) * config.val_fraction)), len(keys) - 1)
    rng = np.random.default_rng(stable_seed("val", config.seed, label))
    return {keys[i] for i in rng.permutation(len(keys))[: max(count, 0)]}


def choose(labels: Sequence[int], split: str, config: DataConfig) -> list[int]:
    """Indices of the records that make up a split, given the labels of the published split that they are part of.

    "val" is the same fraction of every class, see `hold_out`; "test" is the whole published split.
    """
    if split == "test":
        return list(range(len(labels)))
    by_class: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        by_class.setdefault(label, []).append(position)
    held_out = {position for label, keys in by_class.items() for position in hold_out(keys, label, config)}
    return [position for position in range(len(labels)) if (position in held_out) == (split == "val")]
