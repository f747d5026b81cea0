"""Data sets by name, their transforms, and loaders that depend on (seed, epoch) only."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from datasets.config import DataConfig, SyntheticConfig

if TYPE_CHECKING:
    from datasets.api import (
        DATASETS,
        Batch,
        BatchLoader,
        DatasetInfo,
        RawDataset,
        RawSample,
        Sample,
        Split,
        build_transform,
        collate,
        eval_loader,
        load_split,
        steps_per_epoch,
        train_loader,
    )

__all__ = [
    "DATASETS",
    "Batch",
    "BatchLoader",
    "DataConfig",
    "DatasetInfo",
    "RawDataset",
    "RawSample",
    "Sample",
    "Split",
    "SyntheticConfig",
    "build_transform",
    "collate",
    "eval_loader",
    "load_split",
    "steps_per_epoch",
    "train_loader",
]


def __getattr__(name: str) -> Any:
    """Import torch, timm and albumentations when one of the others is first used, so that `train.py --help` is fast."""
    if name in __all__:
        return getattr(import_module("datasets.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
