"""The data sets by name. A factory imports its reader when called: naming a data set costs nothing."""

from collections.abc import Callable

from common.registry import Registry
from datasets.config import DataConfig
from datasets.types import RawDataset

DATASETS: Registry[Callable[[DataConfig, str], RawDataset]] = Registry("data set (--data.name)")


@DATASETS.register("synthetic")
def synthetic(config: DataConfig, split: str) -> RawDataset:
    """Procedural birds; needs no files."""
    from datasets.synthetic import SyntheticBirds

    return SyntheticBirds(config, split)


@DATASETS.register("cub")
def cub(config: DataConfig, split: str) -> RawDataset:
    """CUB-200-2011, 200 species."""
    from datasets.cub import Cub

    return Cub(config, split)


@DATASETS.register("waterbirds")
def waterbirds(config: DataConfig, split: str) -> RawDataset:
    """Waterbirds: land- and waterbirds on land or water."""
    from datasets.waterbirds import Waterbirds

    return Waterbirds(config, split)


@DATASETS.register("imagenet")
def imagenet(config: DataConfig, split: str) -> RawDataset:
    """ImageNet-1k, or any tree of train and val folders with one folder for each class."""
    from datasets.imagenet import ImageNet

    return ImageNet(config, split)
