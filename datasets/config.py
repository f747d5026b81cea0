"""What is read, and how: the `data.*` keys of every config."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class SyntheticConfig:
    """Dials of the procedural birds (data.name=synthetic); sizes in images, shares and probabilities in [0, 1].

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
class DataConfig:
    """Which data set, its files, its augmentation and how it is batched."""

    name: str = "synthetic"
    """A name in the data set registry: synthetic | cub | waterbirds | imagenet."""
    root: str = ""
    """Folder of the published layout (cub, waterbirds: the folder CUB_200_2011 or its parent; imagenet: the folder of
    train and val). Unused by synthetic."""
    image_folder: str = ""
    """Sub-folder of the data set to read images from instead of the published one (cub on Waterbirds backgrounds)."""
    class_names: str = ""
    """imagenet: text file of class names, for other than LOC_synset_mapping.txt in data.root."""
    box_folder: str = ""
    """imagenet: folder of the box XML files, for other than Annotations/CLS-LOC/val in data.root."""
    image_size: int | tuple[int, int] = 224
    """Side of the square input, or (height, width), pixels. Must be a multiple of the patch size."""
    augmentation: Literal["none", "flip", "cub_original", "timm"] = "cub_original"
    """Training augmentation."""
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

    @property
    def size_hw(self) -> tuple[int, int]:
        """(height, width) of the network's input, pixels."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size
