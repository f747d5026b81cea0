"""What `from datasets import ...` gives. Import names from there."""

from pathlib import Path

from common.array_cache import ArrayCache
from common.errors import UserError
from datasets.config import DataConfig
from datasets.loader import BatchLoader, eval_loader, steps_per_epoch, train_loader
from datasets.readers.mask_folder import MaskedDataset
from datasets.registry import DATASETS, BuiltIn
from datasets.split import Split
from datasets.transforms import build_transform
from datasets.types import Batch, DatasetInfo, RawDataset, RawSample, Sample, collate

__all__ = [
    "DATASETS",
    "Batch",
    "BatchLoader",
    "DatasetInfo",
    "RawDataset",
    "RawSample",
    "Sample",
    "Split",
    "build_transform",
    "collate",
    "eval_loader",
    "load_split",
    "steps_per_epoch",
    "train_loader",
]


def load_split(config: DataConfig, split: str, *, train: bool, seed: int) -> Split:
    """Load the split "train", "val" or "test" of `config.name`; augmented with draws from `seed` if `train`.

    Raises UserError for an unknown name or split, and for missing or wrong files.
    """
    raw = DATASETS[config.name](config, split)
    if config.exif != "auto" and hasattr(raw, "rotate"):
        raw.rotate = config.exif == "apply"
    if config.mask_folder:
        raw = MaskedDataset(raw, Path(config.mask_folder).expanduser())
    transform = build_transform(config, train)
    if config.image_cache:
        if not (isinstance(DATASETS[config.name], BuiltIn) and hasattr(raw, "files")):
            raise UserError(
                f"data.image_cache: data.name={config.name} is not read from image files by this repository; leave "
                "data.image_cache empty"
            )
        folder = Path(config.image_cache).expanduser()
        transform.use_cache(ArrayCache("data.image_cache", folder, config.image_cache_gb * 1e9))
    return Split(raw, transform, train=train, seed=seed, max_unreadable=config.max_unreadable)
