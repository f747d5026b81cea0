"""The data sets by name. A factory imports its reader when called: naming a data set costs nothing."""

from collections.abc import Callable

from common.registry import Registry
from datasets.config import DataConfig
from datasets.types import RawDataset

DATASETS: Registry[Callable[[DataConfig, str], RawDataset]] = Registry("data set (--data.name)")


@DATASETS.register("synthetic")
def synthetic(config: DataConfig, split: str) -> RawDataset:
    """Procedural birds; needs no files."""
    from datasets.synthetic.dataset import SyntheticBirds

    return SyntheticBirds(config, split)


@DATASETS.register("digits")
def digits(config: DataConfig, split: str) -> RawDataset:
    """Handwritten digits that come with scikit-learn; needs no files."""
    from datasets.readers.digits import Digits

    return Digits(config, split)


@DATASETS.register("cub")
def cub(config: DataConfig, split: str) -> RawDataset:
    """CUB-200-2011, 200 species."""
    from datasets.readers.cub import Cub

    return Cub(config, split)


@DATASETS.register("waterbirds")
def waterbirds(config: DataConfig, split: str) -> RawDataset:
    """Waterbirds: land- and waterbirds on land or water."""
    from datasets.readers.waterbirds import Waterbirds

    return Waterbirds(config, split)


@DATASETS.register("imagenet")
def imagenet(config: DataConfig, split: str) -> RawDataset:
    """ImageNet-1k, or any tree of train and val folders with one folder for each class."""
    from datasets.readers.imagenet import ImageNet

    return ImageNet(config, split)


@DATASETS.register("imagenet1k")
def imagenet1k(config: DataConfig, split: str) -> RawDataset:
    """ImageNet-1k with the labels of all 1000 classes, also where the tree has few of them."""
    from datasets.readers.imagenet import ImageNet1k

    return ImageNet1k(config, split)


@DATASETS.register("imagenet_a")
def imagenet_a(config: DataConfig, split: str) -> RawDataset:
    """ImageNet-A, natural adversarial images of 200 classes."""
    from datasets.readers.imagenet_shifts import ImageNetSubset

    return ImageNetSubset("imagenet_a", config, split)


@DATASETS.register("imagenet_r")
def imagenet_r(config: DataConfig, split: str) -> RawDataset:
    """ImageNet-R, renditions (art, toys, ...) of 200 classes."""
    from datasets.readers.imagenet_shifts import ImageNetSubset

    return ImageNetSubset("imagenet_r", config, split)


@DATASETS.register("imagenet_v2")
def imagenet_v2(config: DataConfig, split: str) -> RawDataset:
    """ImageNet-V2, a new test set of the 1000 classes."""
    from datasets.readers.imagenet_shifts import ImageNetV2

    return ImageNetV2(config, split)


@DATASETS.register("imagenet9")
def imagenet9(config: DataConfig, split: str) -> RawDataset:
    """ImageNet-9, the backgrounds challenge."""
    from datasets.readers.imagenet9 import ImageNet9

    return ImageNet9(config, split)


@DATASETS.register("metashift")
def metashift(config: DataConfig, split: str) -> RawDataset:
    """MetaShift's cats and dogs by surroundings."""
    from datasets.readers.metashift import MetaShift

    return MetaShift(config, split)


@DATASETS.register("siim_acr")
def siim_acr(config: DataConfig, split: str) -> RawDataset:
    """SIIM-ACR pneumothorax, as prepare_siim_acr.py lays it out."""
    from datasets.readers.siim_acr import SiimAcr

    return SiimAcr(config, split)


@DATASETS.register("part_imagenet")
def part_imagenet(config: DataConfig, split: str) -> RawDataset:
    """PartImageNet, classes of ImageNet with masks of their parts."""
    from datasets.readers.part_imagenet import PartImageNet

    return PartImageNet(config, split)


@DATASETS.register("voc2012")
def voc2012(config: DataConfig, split: str) -> RawDataset:
    """PASCAL VOC 2012, several classes in an image."""
    from datasets.readers.voc import Voc2012

    return Voc2012(config, split)


@DATASETS.register("svhn")
def svhn(config: DataConfig, split: str) -> RawDataset:
    """SVHN, digits cropped from house numbers."""
    from datasets.readers.svhn import Svhn

    return Svhn(config, split)


@DATASETS.register("flowers102")
def flowers102(config: DataConfig, split: str) -> RawDataset:
    """Oxford Flowers 102."""
    from datasets.readers.flowers import Flowers

    return Flowers(config, split)
