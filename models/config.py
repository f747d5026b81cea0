"""The `model.*` keys of a config; a saved model is rebuilt from them."""

from dataclasses import dataclass, field
from typing import Any, Literal

from common.errors import UserError
from common.ranges import (
    HalfOpenUnitInterval,
    LeftOpenUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from common.schema import from_values

SelectorName = Literal["parts", "attention", "rollout", "gradcam", "pca", "random", "given", "given_background"]


@dataclass(frozen=True)
class PartsConfig:
    """Stage 1's part head (iFAM, section 3.1)."""

    num_parts: PositiveInt = 8
    """K, the number of foreground parts; one background channel is added."""
    temperature: PositiveFloat = 1.0
    """tau in softmax((l + g) / tau): divides both the logits l and their Gumbel noise g."""
    logit_scale: PositiveFloat = 1.0
    """Not in the papers: l is this times the negative squared distance, so it weighs distances against noise."""
    gumbel: bool = True
    """Add Gumbel noise to the logits in training."""
    part_dropout: HalfOpenUnitInterval = 0.3
    """Probability of dropping a part's vector from the stage-1 classifier, per image, in training."""
    mask_dropout: HalfOpenUnitInterval = 0.3
    """Probability of dropping a part from the mask, per image, in training."""
    margin: float = 0.0
    """How much a patch's (pixel's) best part logit must exceed the background's to be foreground; published: 0."""
    margin_noise: NonNegativeFloat = 0.0
    """In training, draw the margin of each image uniformly from `margin` plus or minus this."""
    border_dropout: HalfOpenUnitInterval = 0.0
    """Probability of hiding a visible patch with a hidden neighbour (of four), in training."""
    independent_draws: bool = False
    """Draw separate noise for the mask and the maps, as published; in training they then disagree."""
    eval_noise: bool = False
    """Keep the Gumbel noise in evaluation, as published."""
    modulation: Literal["layer_norm", "original"] = "layer_norm"
    """How pooled part vectors are modulated: one LayerNorm over all parts, or an elementwise factor (original, of
    PDiscoFormer)."""
    threshold_form: Literal["distance", "dot_product"] = "distance"
    """What patches that pass the part thresholds keep: distance logits, or (as published) raw dot products."""


@dataclass(frozen=True)
class ModelConfig:
    """A model: its backbone, the source of its weights, and how its stages work."""

    name: str = "two_stage"
    """A name in the model registry: two_stage | vit | decoupled | late_masking | pdiscoformer | cnn."""
    backbone: str = "vit_base_patch14_reg4_dinov2.lvd142m"
    """Any timm VisionTransformer or Eva (DINOv3, EVA-02, PE, rotary ViTs); with name=cnn, any timm network that pools
    its features."""
    weights: str = "hub"
    """hub (timm's download) | none (random) | a file with the names of timm, DINOv3, or Hugging Face's DINOv2, also
    in a training snapshot (docs/checkpoints.md) | a run folder: its best backbones."""
    init_from: str = ""
    """Initialise all weights from another run with this model config: a run folder (its best) or a checkpoint."""
    padding: Literal["zeros", "reflect"] = "zeros"
    """cnn: padding of its convolutions; reflect avoids border artefacts in the maps (ATCON)."""
    drop_path: HalfOpenUnitInterval = 0.0
    """Stochastic depth rate of the backbone (stage 2 of a two-stage model)."""
    stage_1_backbone: str = ""
    """Backbone of stage 1, if other than `backbone`."""
    stage_1_weights: str = ""
    """Weights of stage 1, if other than `weights`."""
    stage_1_drop_path: HalfOpenUnitInterval = 0.0
    stage_1_image_size: NonNegativeInt = 0
    """Side of stage 1's input in pixels: its images are resized (antialiased), its part logits interpolated to the grid
    of stage 2. 0: as stage 2, data.image_size."""
    parts: PartsConfig = field(default_factory=PartsConfig)
    selector: SelectorName = "parts"
    """two_stage: what selects the patches of stage 2, in training too. parts: stage 1. attention, rollout, pca: maps of
    a frozen backbone; gradcam: of a frozen plain ViT; random patches; given: the true masks, or their complement."""
    selector_keep: LeftOpenUnitInterval = 0.25
    """Fraction of the patches (pixels) that a selector by map keeps: those with the largest values."""
    selector_weights: str = ""
    """selector=gradcam: a run folder (its best) or a checkpoint of a run with model.name=vit."""
    mask_kind: Literal["hard", "soft"] = "hard"
    """soft: ablation in which part probabilities bias stage 2's attention; not faithful."""
    mask_gradient: Literal["detached", "straight_through"] = "detached"
    """Whether stage 2's loss reaches stage 1: no (as published; hidden patches are dropped), or by straight-through."""
    mask_resolution: Literal["patch", "pixel"] = "patch"
    """patch: stage 2 sees whole patches (as published). pixel: part logits are interpolated to pixels, and stage 2 sees
    the foreground pixels alone; it runs on the patches that hold any."""
    empty_mask: Literal["best_token", "prefix_only"] = "best_token"
    """What stage 2 sees if stage 1 keeps no patch: the best-scoring patch, or (as published) no patch."""
    stage_2_path: Literal["auto", "dense", "gathered", "packed"] = "auto"
    """How hidden patches are removed: masked (dense) or dropped (gathered, packed), with the same results."""
    pooling: Literal["cls", "avg", "gap_cls", "ep", "aim"] = "cls"
    """Plain ViT, also that of selector=gradcam: class token, average, both concatenated, or attentive pooling (ep:
    efficient probing, aim)."""


def model_config_from_dict(values: dict[str, Any]) -> ModelConfig:
    """Rebuild a ModelConfig from `dataclasses.asdict`, of a file from anywhere.

    Raises UserError naming a key that is unknown, or whose value is not of its type and range.
    """
    if not isinstance(values.get("parts", {}), dict):  # the parser would read the file that a text names
        raise UserError("model.parts is a group of keys, not a value")
    return from_values(ModelConfig, values, "model")
