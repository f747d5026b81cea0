"""The `loss.*` config keys: weights of the loss terms, and which form of each is used."""

from dataclasses import dataclass, field
from typing import Literal

from common.ranges import (
    ClosedUnitInterval,
    HalfOpenUnitInterval,
    LeftOpenUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)


@dataclass(frozen=True)
class LossWeights:
    """Weight of each term (iFAM; defaults as published). A term of weight 0 is not computed."""

    stage_2: NonNegativeFloat = 1.0
    stage_1: NonNegativeFloat = 1.0
    presence: NonNegativeFloat = 1.0
    enforced_presence: NonNegativeFloat = 2.0
    total_variation: NonNegativeFloat = 1.0
    entropy: NonNegativeFloat = 1.0
    equivariance: NonNegativeFloat = 1.0
    orthogonality: NonNegativeFloat = 1.0
    concentration: NonNegativeFloat = 0.0
    border: NonNegativeFloat = 0.0
    """Not in the paper: content at the image border is background. Assumes that objects rarely touch the border."""


@dataclass(frozen=True)
class EquivarianceConfig:
    """The random affine view of the equivariance term (iFAM, PDiscoFormer)."""

    max_angle: NonNegativeFloat = 90.0
    """Degrees."""
    max_shift: NonNegativeFloat = 0.11
    """Fraction of the image's width; of the height as well, unless max_shift_y is given."""
    max_shift_y: NonNegativeFloat | None = None
    """Fraction of the image's height; null: max_shift."""
    max_shear: tuple[NonNegativeFloat, NonNegativeFloat] = (0.0, 0.0)
    """Along x and along y, degrees below 90, as in torchvision."""
    scale: tuple[PositiveFloat, PositiveFloat] = (0.8, 1.4)
    """Smallest and largest scale."""
    padding: Literal["zeros", "reflection"] = "zeros"
    """Outside the image: zeros (the mean colour of a normalised image) or its reflection."""
    images: NonNegativeInt = 0
    """Number of images at the start of each batch that get a second view; 0 = all."""
    published: bool = False
    """One transform for the whole batch, undone by two nearest-neighbour resamplings, and no validity mask."""


@dataclass(frozen=True)
class ClassificationConfig:
    """The classification loss, shared by both stages and the baselines."""

    kind: Literal["cross_entropy", "bce", "balanced_topk", "imbalanced_topk"] = "cross_entropy"
    label_smoothing: HalfOpenUnitInterval = 0.0
    mixup: NonNegativeFloat = 0.0
    """Beta parameter of mixup; 0 = off. Needs kind cross_entropy or bce."""
    cutmix: NonNegativeFloat = 0.0
    """Beta parameter of cutmix; 0 = off. Needs kind cross_entropy or bce."""
    cutmix_minmax: tuple[ClosedUnitInterval, ClosedUnitInterval] | None = None
    """Smallest and largest side of cutmix's box as a fraction of the image's, uniformly drawn; replaces cutmix."""
    mixup_prob: ClosedUnitInterval = 1.0
    """Probability that mixup or cutmix changes a batch (an image or pair, by mixup_mode)."""
    mixup_switch_prob: ClosedUnitInterval = 0.5
    """Probability of cutmix where both are on."""
    mixup_mode: Literal["batch", "pair", "elem"] = "batch"
    """What is drawn for: the whole batch, each pair of images, or each image."""
    bce_sum: bool = False
    """kind bce: sum over the classes instead of their mean."""
    bce_target_threshold: ClosedUnitInterval | None = None
    """kind bce: targets above this are 1 and the others 0, after smoothing and mixing. null: targets as they are."""
    bce_pos_weight: PositiveFloat | None = None
    """kind bce: weight of the positive targets. null: 1."""
    topk: PositiveInt = 1
    """k of the top-k losses (pytopk)."""
    topk_epsilon: NonNegativeFloat = 1.0
    """Smoothing of the top-k losses."""
    topk_max_margin: NonNegativeFloat = 0.5
    """Largest class margin of imbalanced_topk."""


ConsistencyMethod = Literal[
    "gradcam", "guided_backprop", "gradient", "input_x_gradient", "integrated_gradients", "grad_rollout", "agcam",
    "foreground",
]  # fmt: skip


@dataclass(frozen=True)
class ConsistencyConfig:
    """Agreement of two explanations of the model's own prediction (ATCON): a loss that needs no labels."""

    weight: NonNegativeFloat = 0.0
    """0 = off. Applies to every training image if data.semi.mode is supervised, else to the unlabelled images only."""
    first: ConsistencyMethod = "gradcam"
    """gradcam has no ReLU here. foreground: 1 - background probability of a two-stage model's stage 1; combine it with
    gradcam (of stage 2). grad_rollout and agcam are for ViTs."""
    second: ConsistencyMethod = "guided_backprop"
    resolution_match: Literal["enlarge", "shrink", "mask_by_second", "mask_by_first", "smoothgrad"] = "mask_by_second"
    """How maps of two resolutions are compared; the published RESOLUTION_MATCH 0 to 4, in this order."""
    similarity: Literal["correlation", "convolution", "ssim"] = "correlation"
    """The published SIMILARITY_METRIC 0 to 2, in this order."""
    mask_intensity: NonNegativeFloat = 8.0
    """Steepness of the soft mask of mask_by_second (published: 8 alternating, 20 SVHN, 40 fine-tuning)."""
    report: bool = False
    """Report agreement and consistency in every validation, also at weight 0."""
    report_fraction: LeftOpenUnitInterval = 1.0
    """Fraction of the validation and test images on which the two are measured; always the same images."""
    layer: str = ""
    """Layer that gradcam uses, as a module name in the backbone. Default: a ViT's first norm of the last block, a CNN's
    last stage."""


@dataclass(frozen=True)
class LossConfig:
    """The loss terms: their weights and forms."""

    weights: LossWeights = field(default_factory=LossWeights)
    presence: Literal["original", "soft_constraint", "tanh", "soft_tanh"] = "original"
    presence_beta: ClosedUnitInterval = 0.1
    """presence=soft_constraint: beta of its weight (1 - beta) p + beta; 1: as original."""
    enforced_presence: Literal["enforced_presence", "log", "linear", "mse"] = "enforced_presence"
    orthogonality: Literal["parts", "channels"] = "parts"
    """parts: between part vectors (PDiscoFormer). channels: what the published trainer computes."""
    border_weight: NonNegativeFloat = 6.0
    """Weight of the outermost ring of patches in the border term; the other patches have weight 1."""
    equivariance: EquivarianceConfig = field(default_factory=EquivarianceConfig)
    classification: ClassificationConfig = field(default_factory=ClassificationConfig)
    consistency: ConsistencyConfig = field(default_factory=ConsistencyConfig)
