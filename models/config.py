"""What computes: the `model.*` keys of every config, and what a saved model needs to be rebuilt."""

from dataclasses import dataclass, field
from typing import Any, Literal

from common.ranges import HalfOpenUnitInterval, PositiveFloat, PositiveInt


@dataclass(frozen=True)
class PartsConfig:
    """Stage 1's part head (iFAM, section 3.1)."""

    num_parts: PositiveInt = 8
    """K, foreground parts; one background channel comes on top."""
    temperature: PositiveFloat = 1.0
    """tau of softmax((l + g) / tau): it divides the logits l and their Gumbel noise g alike."""
    logit_scale: PositiveFloat = 1.0
    """Ours: l is this times the negative squared distance, which weighs the distances against the noise."""
    gumbel: bool = True
    """Gumbel noise on the logits while training."""
    part_dropout: HalfOpenUnitInterval = 0.3
    """Probability that a part's vector is dropped from the stage-1 classifier, per image, while training."""
    mask_dropout: HalfOpenUnitInterval = 0.3
    """Probability that a part is dropped from the mask, per image, while training."""
    independent_draws: bool = False
    """Draw the mask's noise apart from the maps' noise, as published; then maps and mask disagree in training."""
    eval_noise: bool = False
    """Keep the noise in evaluation, as published."""
    modulation: Literal["layer_norm", "original"] = "layer_norm"
    """What turns pooled into modulated part vectors: a joint LayerNorm, or a factor for each number
    (original: PDiscoFormer)."""
    threshold_form: Literal["distance", "dot_product"] = "distance"
    """What part-logit thresholds leave standing: the distance logits, or (as published) raw dot products."""


@dataclass(frozen=True)
class ModelConfig:
    """One model: which backbone, where its weights come from, and how its stages work."""

    name: str = "two_stage"
    """A name in the model registry: two_stage | vit | decoupled | late_masking | pdiscoformer | cnn."""
    backbone: str = "vit_base_patch14_reg4_dinov2.lvd142m"
    """Any timm VisionTransformer; of `cnn`, any timm network that pools its features."""
    weights: str = "hub"
    """hub (timm's download) | none (random) | a file: timm's, or Hugging Face's DINOv2 / RAD-DINO naming."""
    init_from: str = ""
    """Start from all weights of another model of this config: a run's folder (its best) or one of its checkpoints."""
    padding: Literal["zeros", "reflect"] = "zeros"
    """cnn: what its convolutions see beyond the border; reflect keeps borders out of the maps (ATCON)."""
    drop_path: HalfOpenUnitInterval = 0.0
    stage_1_backbone: str = ""
    """Stage 1's backbone where it differs from `backbone`."""
    stage_1_weights: str = ""
    """Stage 1's weights where they differ from `weights`."""
    stage_1_drop_path: HalfOpenUnitInterval = 0.0
    parts: PartsConfig = field(default_factory=PartsConfig)
    mask_kind: Literal["hard", "soft"] = "hard"
    """soft: the ablation in which stage 2 attends with the part probabilities; not faithful."""
    mask_gradient: Literal["detached", "straight_through"] = "detached"
    """Whether stage 2's loss reaches stage 1: no (as published, prunes) or through a straight-through mask."""
    empty_mask: Literal["best_token", "prefix_only"] = "best_token"
    """What stage 2 sees where stage 1 kept nothing: its best-scoring patch, or (as published) no patch at all."""
    stage_2_path: Literal["auto", "dense", "gathered", "packed"] = "auto"
    """How hidden patches are left out: masked (dense), or dropped (gathered, packed). Same numbers."""
    pooling: Literal["cls", "avg", "gap_cls", "ep", "aim"] = "cls"
    """Plain ViT only: class token, average, both side by side, or attentive pooling (efficient probing, AIM)."""


def model_config_from_dict(values: dict[str, Any]) -> ModelConfig:
    """Rebuild a ModelConfig from `dataclasses.asdict`."""
    return ModelConfig(**{**values, "parts": PartsConfig(**values["parts"])})
