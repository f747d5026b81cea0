"""The data sets by name, each with its default augmentation. A reader is imported when its data set is opened.

A data set of your own is one line, `DATASETS.register("mine")(Mine)`: a class or function called with (DataConfig,
split) that returns a RawDataset. Its attribute `augmentation`, where it has one, is what data.augmentation=auto means.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from common.registry import Registry
from datasets.config import DataConfig

if TYPE_CHECKING:  # it imports torch
    from datasets.types import RawDataset

DATASETS: Registry[Callable[[DataConfig, str], "RawDataset"]] = Registry("data set (--data.name)")


@dataclass(frozen=True)
class BuiltIn:
    """A data set of this repository; a call opens one split."""

    reader: str
    """Where its class is, "module:Class"."""
    augmentation: str

    def __call__(self, config: DataConfig, split: str) -> "RawDataset":
        """Import the reader and open a split. Raises UserError as the reader does."""
        module, _, name = self.reader.partition(":")
        data: RawDataset = getattr(import_module(module), name)(config, split)
        return data


for _name, _reader, _augmentation in (
    ("synthetic", "datasets.synthetic.dataset:SyntheticBirds", "flip"),
    ("digits", "datasets.readers.digits:Digits", "none"),  # a mirrored digit is no digit
    ("svhn", "datasets.readers.svhn:Svhn", "none"),
    ("cub", "datasets.readers.cub:Cub", "cub_original"),
    ("nabirds", "datasets.readers.cub:NABirds", "cub_geometry"),
    ("waterbirds", "datasets.readers.waterbirds:Waterbirds", "cub_original"),
    ("metashift", "datasets.readers.metashift:MetaShift", "cub_original"),
    ("flowers102", "datasets.readers.flowers:Flowers", "cub_geometry"),
    ("part_imagenet", "datasets.readers.part_imagenet:PartImageNet", "cub_geometry"),
    ("voc2012", "datasets.readers.voc:Voc2012", "atcon_voc"),
    ("coco", "datasets.readers.coco:Coco", "atcon_voc"),
    ("siim_acr", "datasets.readers.siim_acr:SiimAcr", "siim_acr"),
    ("folder", "datasets.readers.folder:Folder", "flip"),
    ("imagenet", "datasets.readers.imagenet:ImageNet", "timm"),
    ("imagenet1k", "datasets.readers.imagenet:ImageNet1k", "timm"),
    ("imagenet_a", "datasets.readers.imagenet_shifts:ImageNetA", "timm"),
    ("imagenet_r", "datasets.readers.imagenet_shifts:ImageNetR", "timm"),
    ("imagenet_v2", "datasets.readers.imagenet_shifts:ImageNetV2", "timm"),
    ("imagenet9", "datasets.readers.imagenet9:ImageNet9", "timm"),
):
    DATASETS.register(_name)(BuiltIn(_reader, _augmentation))

WITHOUT_FILES = ("synthetic", "digits")
"""Data sets that read no files of the user's, and so no data.root."""

PUBLISHED_VIEW = {"evaluation": "center_crop", "interpolation": "bilinear", "crop": 1.0}
PUBLISHED_VIEWS: Mapping[str, Mapping[str, Any]] = dict.fromkeys(
    (
        "synthetic",
        "digits",
        "svhn",
        "cub",
        "nabirds",
        "waterbirds",
        "metashift",
        "flowers102",
        "part_imagenet",
        "voc2012",
        "coco",
    ),
    PUBLISHED_VIEW,
)
"""Data set -> what data.evaluation, data.interpolation and data.crop are if they are auto, whatever the backbone."""
IMAGENET_CROP = 224 / 256
"""Fraction of the short side that ImageNet's evaluation keeps."""

PRESCRIBED: Mapping[str, Mapping[str, Any]] = {
    "imagenet9": {"evaluation": "center_crop", "crop": 1.0},  # its images are cropped already
    "siim_acr": {
        "augmentation": "siim_acr",
        "evaluation": "squash",
        "interpolation": "bilinear",
        "crop": 1.0,
        "mean": (0.48865,) * 3,
        "std": (0.24621,) * 3,
    },
}
"""Data set -> keys that its published protocol fixes."""


def with_prescribed(config: DataConfig) -> DataConfig:
    """The config with the keys that its data set prescribes replaced, and data.augmentation=auto resolved."""
    return replace(with_own_augmentation(config), **PRESCRIBED.get(config.name, {}))


def with_own_augmentation(config: DataConfig) -> DataConfig:
    """The config with the data set's own augmentation in place of "auto"; "none" where the data set declares none."""
    if config.augmentation != "auto":
        return config
    own: dict[str, Any] = {"augmentation": "none"}  # even a flip can change the class
    if config.name in DATASETS:  # an unknown name is an error when the data set is opened
        own["augmentation"] = getattr(DATASETS[config.name], "augmentation", "none")
    return replace(config, **own)


def with_input(config: DataConfig, own: Mapping[str, Any]) -> DataConfig:
    """The config with every key of the input that is left open: mean, std, evaluation, interpolation, crop.

    The data set's published view comes first, then `own`, the values of the backbone's weights (`models.own_input`),
    then ImageNet's mean and std and `PUBLISHED_VIEW`.
    """
    view = {**PUBLISHED_VIEW, **own, **PUBLISHED_VIEWS.get(config.name, {})}
    if config.evaluation == "imagenet":
        view |= {"interpolation": "bicubic", "crop": IMAGENET_CROP}
    elif config.evaluation == "squash":  # asked for: the whole image
        view["crop"] = 1.0
    mean, std = config.normalisation
    chosen: dict[str, Any] = {
        "mean": mean if config.mean else own.get("mean", mean),
        "std": std if config.std else own.get("std", std),
        "evaluation": view["evaluation"] if config.evaluation == "auto" else config.evaluation,
        "interpolation": view["interpolation"] if config.interpolation == "auto" else config.interpolation,
        "crop": config.crop or view["crop"],
    }
    return replace(config, **chosen)
