"""What is read, and how: the `data.*` keys of every config."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class SyntheticConfig:
    """Options of the procedural birds (data.name=synthetic); sizes in images, shares and probabilities in [0, 1].

    The defaults draw the easy-looking set "D0" whose training images agree with their background in 95 % of cases.
    """

    train_images: int = 2000
    val_images: int = 400
    test_images: int = 800
    correlation: float = 0.95
    """Share of training and validation images whose background agrees with the class (test: 0.5, all groups equal)."""
    tilt: float = 0.0
    """Largest rotation of the background texture, radians."""
    contrast: float = 1.0
    """Contrast of the background texture."""
    noise: float = 0.03
    """Standard deviation of the pixel noise, in units of the [0, 1] intensity."""
    any_hue: float = 0.0
    """Share of birds whose body hue is uniform over all hues instead of warm."""
    hue_gap: float = 0.0
    """0: both backgrounds share their hues; 1: water is blue and forest is green, without overlap."""
    colour_cue: float = 0.0
    """Share of birds whose light wing colour also tells the class."""


@dataclass(frozen=True)
class SemiConfig:
    """Training with few labels (ATCON): which images keep theirs, and what a step reads (docs/atcon.md)."""

    mode: Literal["supervised", "unsupervised", "alternating", "combining"] = "supervised"
    """supervised: labelled images alone. unsupervised: unlabelled ones alone, by loss.consistency. alternating: each
    step the one or the other. combining: both in every step."""
    alpha: float = 1.0
    """alternating: how many times the labelled images count (published: 8)."""
    batch_size: int = 4
    """Unlabelled images in a batch; data.batch_size is that of labelled ones."""
    images_per_class: int = 0
    """So many images of each class, drawn by data.seed, keep their labels in training; 0 = all do."""
    fully_balanced: bool = True
    """Where images show several classes: only those with a single one keep labels."""
    unlabelled: Literal["rest", "labelled"] = "rest"
    """Where unlabelled images come from: the other training images, or the labelled ones themselves."""
    unlabelled_size: int = 0
    """At most so many of them, drawn by data.seed; 0 = all."""


@dataclass(frozen=True)
class DataConfig:
    """Which data set, its files, its augmentation and how it is batched."""

    name: str = "synthetic"
    """A name in the data set registry; a wrong one lists them all."""
    root: str = ""
    """Folder of the published layout (cub, waterbirds: the folder CUB_200_2011 or its parent; imagenet: the folder of
    train and val; the others: docs/data.md). Unused by synthetic."""
    image_folder: str = ""
    """Sub-folder of the data set to read images from instead of the published one (cub on Waterbirds backgrounds)."""
    class_names: str = ""
    """imagenet*: text file of class names, for other than LOC_synset_mapping.txt in data.root or timm's list.
    part_imagenet: the same, for other than timm's list."""
    variant: Literal[
        "original", "mixed_same", "mixed_rand", "mixed_next", "only_fg", "no_fg", "only_bg_b", "only_bg_t",
        "full", "robust", "non_robust", "segmentation",
    ] = "original"  # fmt: skip
    """imagenet9: which of its sets. siim_acr: the test set, full (which original means too) | robust | non_robust.
    voc2012: segmentation = the images that have masks."""
    output_rule: Literal["argmax", "restricted"] = "argmax"
    """imagenet9: from 1000 outputs to 9 classes. argmax (published): the highest of all outputs names the class, and
    none of the nine where it belongs to none; restricted: outputs of none of the nine are left out."""
    class_mapping: str = ""
    """imagenet9: the file in_to_in9.json, for other than the one in data.root."""
    box_folder: str = ""
    """imagenet: folder of the box XML files, for other than Annotations/CLS-LOC/val in data.root."""
    mask_folder: str = ""
    """Folder of masks (.png, > 0 is the object) under the images' own relative paths; replaces the data set's."""
    image_size: int | tuple[int, int] = 224
    """Side of the square input, or (height, width), pixels. Must be a multiple of the patch size."""
    augmentation: Literal[
        "auto", "none", "flip", "cub_original", "cub_geometry", "foreground_crop", "timm", "siim_acr", "atcon_voc",
        "atcon_svhn",
    ] = "auto"  # fmt: skip
    """Training augmentation. auto: the data set's own (docs/data.md)."""
    evaluation: Literal["center_crop", "imagenet", "squash"] = "center_crop"
    """Evaluation transform. center_crop: short side to the image size, centre crop, bilinear. imagenet (published for
    ImageNet): bicubic; short side to 8/7 of the image size and centre crop; from 384 pixels the whole image is
    squashed instead. squash: the whole image, bilinear."""
    batch_size: int = 16
    eval_batch_size: int = 64
    workers: int = 4
    """Data loading processes; 0 loads in the main process."""
    val_fraction: float = 0.1
    """Share of the training split held out for validation where the data set publishes none."""
    seed: int = 0
    """Seed of what the data set itself draws (synthetic images, carved splits). Not the training seed."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    semi: SemiConfig = field(default_factory=SemiConfig)

    @property
    def size_hw(self) -> tuple[int, int]:
        """(height, width) of the network's input, pixels."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size
