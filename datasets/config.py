"""The `data.*` config keys: which data set, and how it is augmented, evaluated and batched."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from common.cores import own_cores
from common.ranges import (
    ClosedUnitInterval,
    HalfOpenUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

SPLITS = ("train", "val", "test")
"""Names of the splits; in the published index files a split is numbered by its position here."""

MOST_WORKERS = 8
Triple = tuple[float, float, float]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class SyntheticConfig:
    """Options of the procedural birds (data.name=synthetic)."""

    train_images: PositiveInt = 2000
    val_images: PositiveInt = 400
    test_images: PositiveInt = 800
    correlation: ClosedUnitInterval = 0.95
    """Fraction of training and validation images whose background matches the class (test: 0.5, equal groups)."""
    tilt: NonNegativeFloat = 0.0
    """Largest rotation of the background texture, radians."""
    contrast: NonNegativeFloat = 1.0
    """Contrast of the background texture."""
    noise: NonNegativeFloat = 0.03
    """Standard deviation of the pixel noise; pixel values are in [0, 1]."""
    any_hue: ClosedUnitInterval = 0.0
    """Fraction of birds whose body hue is uniform over all hues instead of warm."""
    hue_gap: ClosedUnitInterval = 0.0
    """0: both backgrounds use the same hues; 1: water is blue and forest is green, without overlap."""
    colour_cue: ClosedUnitInterval = 0.0
    """Fraction of birds whose light wing colour also depends on the class."""


@dataclass(frozen=True)
class SemiConfig:
    """Training with few labels (ATCON): which images keep labels, and what each step trains on (docs/atcon.md)."""

    mode: Literal["supervised", "unsupervised", "alternating", "combining"] = "supervised"
    """supervised: labelled images only. unsupervised: unlabelled images only, trained by loss.consistency. alternating:
    each step uses one or the other. combining: every step uses both."""
    alpha: PositiveFloat = 1.0
    """alternating: weight of the labelled images in the draw of each step's kind (published: 8)."""
    batch_size: PositiveInt = 4
    """Unlabelled images per batch; data.batch_size is for labelled images."""
    images_per_class: NonNegativeInt = 0
    """Number of training images per class that keep their labels, drawn with data.seed; 0 = all."""
    fully_balanced: bool = True
    """Multi-label data sets: only images that show a single class keep their labels."""
    unlabelled: Literal["rest", "labelled"] = "rest"
    """Source of the unlabelled images: the rest of the training split, or the labelled images themselves."""
    unlabelled_size: NonNegativeInt = 0
    """Largest number of unlabelled images, drawn with data.seed; 0 = all."""


@dataclass(frozen=True)
class TimmConfig:
    """data.augmentation=timm: arguments of timm.data.create_transform, under its names."""

    train_crop_mode: Literal["rrc", "rkrc", "rkrr"] = "rrc"
    """rrc: random resized crop. rkrc, rkrr: resize with the aspect ratio kept, then crop the centre or at random."""
    scale: tuple[PositiveFloat, PositiveFloat] | None = None
    """Smallest and largest area of the crop, as a fraction of the image's. null: timm's (rrc: 0.08, 1)."""
    ratio: tuple[PositiveFloat, PositiveFloat] | None = None
    """Smallest and largest aspect ratio of the crop. null: timm's (rrc: 3/4, 4/3)."""
    interpolation: Literal["bicubic", "bilinear", "random"] = "bicubic"
    """Of the resize to the crop; random: one of the two for each image."""
    hflip: ClosedUnitInterval = 0.5
    """Probability of a horizontal flip."""
    vflip: ClosedUnitInterval = 0.0
    auto_augment: str = "rand-m6-mstd0.5"
    """Policy: rand-m9-mstd0.5-inc1, augmix-m5-w4-d2, v0, original, 3a, ... of timm; empty: none."""
    color_jitter: NonNegativeFloat = 0.4
    """Strength of brightness, contrast and saturation, where auto_augment is empty or 3a."""
    color_jitter_prob: ClosedUnitInterval | None = None
    """Probability of the jitter. null: always."""
    grayscale_prob: ClosedUnitInterval = 0.0
    gaussian_blur_prob: ClosedUnitInterval = 0.0
    re_prob: ClosedUnitInterval = 0.0
    """Probability of random erasing."""
    re_mode: Literal["const", "rand", "pixel"] = "const"
    """What erased pixels become: the mean colour, one random colour of the box, or a random colour each."""
    re_count: PositiveInt = 1
    """Largest number of erased boxes."""


@dataclass(frozen=True)
class DataConfig:
    """Data set, its files, augmentation and batches."""

    name: str = "synthetic"
    """Name of the data set; an unknown name lists all of them."""
    root: str = ""
    """Folder of the data set (folder: with train/, test/ and perhaps val/, or index.csv; cub, waterbirds: CUB_200_2011
    or its parent; imagenet: with train/ and val/; others: docs/data.md). Unused by synthetic."""
    image_folder: str = ""
    """Sub-folder to read images from instead of the published one (cub on Waterbirds backgrounds)."""
    index: str = ""
    """folder: path of the index file; default: index.csv or index.tsv in data.root. part_imagenet: path of
    PDiscoFormer's list of training and test images, train_test_split_pimagenet_ood.txt; default: split by data.seed."""
    label_separator: str = ""
    """folder: what separates the classes of an image in the column label of the index, such as |; makes the data
    multi-label. Empty: one class per image."""
    place_folders: bool = False
    """folder: the first folder below a class folder is the place of its images, and groups are class x place."""
    class_names: str = ""
    """imagenet*, part_imagenet, folder: text file of class names. Default: LOC_synset_mapping.txt in data.root
    (imagenet*), the names of the folders (folder), or timm's list."""
    variant: Literal[
        "original", "mixed_same", "mixed_rand", "mixed_next", "only_fg", "no_fg", "only_bg_b", "only_bg_t",
        "full", "robust", "non_robust", "segmentation", "disc",
    ] = "original"  # fmt: skip
    """imagenet9: which of its sets. siim_acr: which test set, full (same as original) | robust | non_robust. voc2012:
    segmentation = the images that have masks. metashift: disc = DISC's validation, 15 % of test/."""
    output_rule: Literal["argmax", "restricted"] = "argmax"
    """imagenet9: from 1000 outputs to 9 classes. argmax (published): the class of the highest output, or none if that
    output belongs to none of the nine. restricted: outputs that belong to none of the nine are ignored."""
    class_mapping: str = ""
    """imagenet9: path of in_to_in9.json; default: the one in data.root."""
    box_folder: str = ""
    """imagenet: folder of the box XML files; default: Annotations/CLS-LOC/val in data.root."""
    mask_folder: str = ""
    """Folder of masks (.png, > 0 is the object) with the same relative paths as the images; replaces the data set's own
    masks."""
    exif: Literal["auto", "apply", "ignore"] = "auto"
    """Rotate images and masks by their EXIF orientation? auto: published data sets are read as stored, as their
    annotations need; images of your own are rotated (docs/data.md)."""
    image_size: int | tuple[int, int] = 224
    """Side of the square input or (height, width), pixels: positive multiples of the patch size."""
    augmentation: Literal[
        "auto", "none", "flip", "cub_original", "cub_geometry", "foreground_crop", "timm", "siim_acr", "atcon_voc",
        "atcon_svhn",
    ] = "auto"  # fmt: skip
    """Training augmentation. auto: the data set's own (docs/data.md)."""
    evaluation: Literal["auto", "center_crop", "imagenet", "squash"] = "auto"
    """Evaluation transform. center_crop: resize the short side to the image size / data.crop, then crop the centre.
    squash: resize the whole image instead. imagenet (published for ImageNet): center_crop, by default bicubic with
    data.crop 0.875; from 384 pixels on, resize the whole image. auto: the data set's published one, else that of the
    backbone's weights."""
    interpolation: Literal["auto", "bilinear", "bicubic"] = "auto"
    """Of the resize before the crop. auto: as data.evaluation."""
    crop: ClosedUnitInterval = 0.0
    """Fraction of the resized image that the evaluation transform keeps of each side. 0: as data.evaluation=auto."""
    global_batch: NonNegativeInt = 0
    """Training images per optimiser step, over all processes and micro-batches, which follow from it. 0: as many as
    batch_size, optim.grad_accum_steps and the number of processes give."""
    max_batch_per_device: PositiveInt = 16
    """With global_batch: the largest micro-batch of a process."""
    batch_size: PositiveInt = 16
    """Training images per batch and process, if global_batch is 0."""
    eval_batch_size: PositiveInt = 64
    workers: NonNegativeInt | Literal["auto"] = "auto"
    """Data loading processes; 0 loads in the main process. auto: one fewer than the CPU cores of this process, from 1
    to 8."""
    max_unreadable: ClosedUnitInterval = 0.1
    """Fraction of an epoch's training images that may be unreadable and left out; more are an error. In evaluation any
    unreadable image is."""
    check_images: bool = True
    """Before training, read every validation and test image that was not read since it changed, to find broken ones."""
    image_cache: str = ""
    """Folder for resized images: each is decoded and resized once, for all epochs and runs. Empty: off."""
    image_cache_gb: PositiveFloat = 20.0
    """Size at which the folder gets no more files."""
    val_fraction: HalfOpenUnitInterval = 0.1
    """Fraction of the training split held out for validation if the data set publishes no validation split."""
    seed: int = 0
    """Seed of the data set itself (synthetic images, held-out splits). Not the training seed."""
    mean: tuple[float, float, float] | None = None
    """Of each colour channel, pixel values in [0, 1]; subtracted from the image. null: what the backbone's weights were
    trained with, by its name in timm."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    """Of each colour channel; the image is divided by it. null: the backbone's own."""
    timm: TimmConfig = field(default_factory=TimmConfig)
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    semi: SemiConfig = field(default_factory=SemiConfig)

    @property
    def size_hw(self) -> tuple[int, int]:
        """(height, width) of the network's input, pixels."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def loading_processes(self) -> int:
        """`workers` as a number."""
        return min(MOST_WORKERS, max(1, own_cores() - 1)) if self.workers == "auto" else self.workers

    @property
    def normalisation(self) -> tuple[Triple, Triple]:
        """Mean and standard deviation of each colour channel; ImageNet's where they are not given."""
        return self.mean or IMAGENET_MEAN, self.std or IMAGENET_STD


def earlier_view(data: Mapping[Any, Any]) -> dict[str, Any]:
    """The keys `interpolation` and `crop` of `data` as they were before they were keys, by its `evaluation`."""
    published = data.get("evaluation") == "imagenet"
    return {"interpolation": "bicubic" if published else "bilinear", "crop": 0.875 if published else 1.0}
