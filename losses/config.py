"""Which loss terms, how heavy, and in which published or corrected form: the `loss.*` keys."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class LossWeights:
    """Weight of each term (iFAM; defaults are the published ones). 0 skips the term's computation."""

    stage_2: float = 1.0
    stage_1: float = 1.0
    presence: float = 1.0
    enforced_presence: float = 2.0
    total_variation: float = 1.0
    entropy: float = 1.0
    equivariance: float = 1.0
    orthogonality: float = 1.0
    concentration: float = 0.0
    border: float = 0.0
    """Ours, not the paper's: content seen at the image border is background. Assumes objects rarely touch it."""


@dataclass(frozen=True)
class EquivarianceConfig:
    """The random affine view of the equivariance term (iFAM, PDiscoFormer)."""

    max_angle: float = 90.0
    """Degrees."""
    max_shift: float = 0.11
    """Share of the image side."""
    scale: tuple[float, float] = (0.8, 1.4)
    padding: Literal["zeros", "reflection"] = "zeros"
    """What lies outside the image: zeros (the mean colour of a normalised image) or its reflection."""
    images: int = 0
    """Only the first so many images of a batch get a second view; 0 = all."""
    published: bool = False
    """One transform for the whole batch, undone by two nearest-neighbour resamplings, and no validity mask."""


@dataclass(frozen=True)
class ClassificationConfig:
    """The classification loss, shared by both stages and the baselines."""

    kind: Literal["cross_entropy", "bce", "balanced_topk", "imbalanced_topk"] = "cross_entropy"
    label_smoothing: float = 0.0
    mixup: float = 0.0
    """Beta parameter of mixup; 0 = off. Mixed batches need kind cross_entropy or bce."""
    cutmix: float = 0.0
    topk: int = 1
    """k of the top-k losses (pytopk)."""
    topk_epsilon: float = 1.0
    """Smoothing of the top-k losses."""
    topk_max_margin: float = 0.5
    """Largest class margin of imbalanced_topk."""


ConsistencyMethod = Literal[
    "gradcam", "guided_backprop", "gradient", "input_x_gradient", "integrated_gradients", "grad_rollout", "agcam",
    "foreground",
]  # fmt: skip


@dataclass(frozen=True)
class ConsistencyConfig:
    """Agreement of two explanations of the model's own answer (ATCON): a loss that needs no label."""

    weight: float = 0.0
    """0 = off. On every training image; with another data.semi.mode than supervised on the unlabelled ones alone."""
    first: ConsistencyMethod = "gradcam"
    """gradcam is without ReLU here. foreground: 1 - background probability of a two-stage model's stage 1, whose
    natural partner is gradcam (of stage 2). For ViTs also grad_rollout and agcam."""
    second: ConsistencyMethod = "guided_backprop"
    resolution_match: Literal["enlarge", "shrink", "mask_by_second", "mask_by_first", "smoothgrad"] = "mask_by_second"
    """How maps of two resolutions are made comparable; the published RESOLUTION_MATCH 0 to 4, in this order."""
    similarity: Literal["correlation", "convolution", "ssim"] = "correlation"
    """The published SIMILARITY_METRIC 0 to 2, in this order."""
    mask_intensity: float = 8.0
    """Steepness of the soft mask of mask_by_second (published: 8 alternating, 20 SVHN, 40 fine-tuning)."""
    report: bool = False
    """Measure agreement and consistency wherever the model is validated, also at weight 0."""
    report_fraction: float = 1.0
    """Share of the validation and test images, always the same ones, on which the two are measured."""
    layer: str = ""
    """What gradcam reads, by the module's name in the backbone. Empty: a ViT's last block's first norm, a CNN's last
    stage."""


@dataclass(frozen=True)
class LossConfig:
    """The whole `loss.*` tree."""

    weights: LossWeights = field(default_factory=LossWeights)
    presence: Literal["original", "soft_constraint", "tanh", "soft_tanh"] = "original"
    enforced_presence: Literal["enforced_presence", "log", "linear", "mse"] = "enforced_presence"
    orthogonality: Literal["parts", "channels"] = "parts"
    """`parts`: between part vectors (what the name says). `channels`: what the published trainer computes."""
    border_weight: float = 6.0
    """Weight of the border ring against the inside in the border term."""
    equivariance: EquivarianceConfig = field(default_factory=EquivarianceConfig)
    classification: ClassificationConfig = field(default_factory=ClassificationConfig)
    consistency: ConsistencyConfig = field(default_factory=ConsistencyConfig)
