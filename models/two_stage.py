"""The two-stage model: stage 1 discovers parts and a foreground mask, stage 2 classifies from that foreground alone."""

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import UserError
from models.backbone import create_backbone, grid_of, load_backbone_weights, patch_tokens
from models.config import ModelConfig
from models.interface import ImageClassifier, NetworkView, Stage, select_parts
from models.masked_vit import MaskedViT, check_masked_vit
from models.outputs import StageOneOutput, TwoStageOutput
from models.part_discovery import Intervention, PartHead, PartNoise, PartOutput, draw_noise
from models.selection import (
    Selection,
    drop_border,
    enlarge_patches,
    enlarge_tokens,
    foreground_margin,
    keep_best_token,
    patches_with,
    soft_gate,
    straight_through,
)
from models.token_cache import TokenCache


class StageOne(nn.Module):
    """A ViT with a part head on its patch tokens."""

    def __init__(self, config: ModelConfig, num_classes: int, image_size: tuple[int, int]) -> None:
        """`image_size`: (height, width) in pixels of the images passed in. Raises UserError."""
        super().__init__()
        name = config.stage_1_backbone or config.backbone
        key = "model.stage_1_image_size" if config.stage_1_image_size else "data.image_size"
        self.backbone = create_backbone(name, _input_size(config, image_size), config.stage_1_drop_path, key)
        self.parts = PartHead(self.backbone.embed_dim, num_classes, config.parts)
        self.config = config
        self.image_size = image_size
        self.mask_grid = grid_of(self.backbone)
        """Patch grid (h, w) of the mask: that of stage 2."""
        self.token_cache: TokenCache | None = None
        """Set by training (`train.token_cache`), which then keeps the backbone as it is."""

    def forward(
        self,
        images: Tensor,
        noise: PartNoise | None = None,
        intervention: Intervention | None = None,
        generator: torch.Generator | None = None,
        one_time: bool = False,
    ) -> StageOneOutput:
        """Images [B, 3, H, W] -> StageOneOutput. `noise` None: drawn from `generator` (None: the global one).

        `one_time`: these images will not come again, so that their tokens are not worth storing in `token_cache`.
        """
        cache = None if one_time else self.token_cache
        return self.from_tokens(self.tokens(images, cache), noise, intervention, generator)

    def tokens(self, images: Tensor, cache: TokenCache | None = None) -> Tensor:
        """Patch tokens [B, N, D] of images [B, 3, H, W], read from `cache` where stored."""
        images = self.resized(images)
        return patch_tokens(self.backbone, images) if cache is None else cache.tokens(self.backbone, images)

    def resized(self, images: Tensor) -> Tensor:
        """The images in the size of the backbone's input (`model.stage_1_image_size`)."""
        size = _input_size(self.config, self.image_size)
        if size == self.image_size:
            return images
        exact = images.to(torch.promote_types(images.dtype, torch.float32))  # not implemented for float16 and bfloat16
        return F.interpolate(exact, size=size, mode="bilinear", align_corners=False, antialias=True).to(images.dtype)

    def from_tokens(
        self,
        tokens: Tensor,
        noise: PartNoise | None = None,
        intervention: Intervention | None = None,
        generator: torch.Generator | None = None,
    ) -> StageOneOutput:
        """The same from patch tokens [B, N, D], so that several interventions can share one pass of the backbone."""
        if noise is None:
            patches = self.mask_grid[0] * self.mask_grid[1]
            noise = draw_noise(self.config.parts, tokens.shape[:2], tokens.device, self.training, generator, patches)
        grid, size = grid_of(self.backbone), self.image_size if self._by_pixel else self.mask_grid
        if grid == size:
            out = self.parts(tokens, noise, intervention)
        else:
            out = self.parts(tokens, noise, intervention, lambda values: enlarge_tokens(values, grid, size))
        return StageOneOutput(self._selection(out, noise), out.part_logits, out.part_features)

    @property
    def _by_pixel(self) -> bool:
        return self.config.mask_resolution == "pixel"

    def _selection(self, out: PartOutput, noise: PartNoise) -> Selection:
        grid, config = self.mask_grid, self.config
        margin = foreground_margin(out.mask_logits) - config.parts.margin
        if noise.margin is not None:
            margin = margin - noise.margin[:, None]
        mask, pixels = margin >= 0, None  # as published, a tie with the background counts as foreground
        if self._by_pixel:
            pixels = mask.unflatten(1, self.image_size)
            mask = patches_with(pixels, grid).flatten(1)
        if noise.border is not None:
            mask = drop_border(mask.unflatten(1, grid), noise.border.unflatten(1, grid) < config.parts.border_dropout)
            mask = mask.flatten(1)
        empty = ~mask.any(1)
        if config.empty_mask == "best_token":  # otherwise stage 2 sees only the prefix tokens
            score = out.fallback_score[:, None].unflatten(2, grid_of(self.backbone))
            mask = keep_best_token(mask, F.interpolate(score, size=grid).flatten(1))
        if pixels is not None:
            shown = enlarge_patches(mask.unflatten(1, grid), self.image_size)
            # The fallback patch is shown whole: no pixel of it is foreground.
            pixels = shown & (pixels | empty[:, None, None])
        gate = self._gate(out, mask, margin)

        def channels_first(t: Tensor) -> Tensor:
            # [B, N, K+1] -> [B, K+1, h, w]
            return cast(Tensor, t.transpose(1, 2).unflatten(2, grid_of(self.backbone)))

        return Selection(
            mask=mask.unflatten(1, grid),
            pixels=pixels,
            maps=channels_first(out.maps),
            logits=channels_first(out.logits),
            gate=None if gate is None else gate.unflatten(1, grid),
            empty=empty,
        )

    def _gate(self, out: PartOutput, mask: Tensor, margin: Tensor) -> Tensor | None:
        if self.config.mask_kind == "soft":
            return soft_gate(out.mask_logits, out.noisy_logits)
        # Without gradients the hard mask gives the same logits faster.
        if self.config.mask_gradient == "straight_through" and self.training and torch.is_grad_enabled():
            return straight_through(mask, margin)
        return None


class TwoStageModel(ImageClassifier, paper_url="https://arxiv.org/abs/2506.08915"):
    """iFAM: stage 1 selects patches, stage 2 sees only these.

    `from_pretrained` and `save_pretrained` take a folder or a hub id.
    """

    objective = "two_stage"
    parameter_rules = "two_stage"
    finds_parts = True
    reads_selection = True

    def __init__(self, model_config: ModelConfig, num_classes: int, image_size: tuple[int, int]) -> None:
        """Random weights; `load_pretrained_backbones` loads `model_config.weights` into the backbones."""
        super().__init__()
        self.model_config = config = model_config
        self.stage_1 = StageOne(config, num_classes, image_size)
        self.stage_2 = MaskedViT(
            create_backbone(config.backbone, image_size, config.drop_path), num_classes, config.stage_2_path
        )
        self.stage_1.mask_grid = grid_of(self.stage_2.backbone)
        _check(config, self)

    def load_pretrained_backbones(self) -> None:
        """Load `config.weights` (and `config.stage_1_weights`) into both backbones. Raises UserError."""
        config = self.model_config
        stage_1_name = config.stage_1_backbone or config.backbone
        stage_1_weights = config.stage_1_weights or config.weights
        load_backbone_weights(self.stage_1.backbone, stage_1_name, stage_1_weights, "stage_1")
        load_backbone_weights(self.stage_2.backbone, config.backbone, config.weights)

    def select(self, images: Tensor, **options: Any) -> StageOneOutput:
        """Stage 1 alone; same options as `StageOne.forward`."""
        return cast(StageOneOutput, self.stage_1(images, **options))

    def predict(self, images: Tensor, selection: Selection) -> Tensor:
        """Stage 2 alone: class logits [B, C] for any Selection."""
        return cast(Tensor, self.stage_2(images, selection, soft=self.model_config.mask_kind == "soft"))

    def network_view(self, stage: Stage = 2, selection: Selection | None = None) -> NetworkView:
        """Stage 1 as a classifier by parts, or stage 2 with `selection` held fixed."""
        if stage == 1:
            return stage_1_view(self, self.stage_1)
        assert selection is not None, "stage 2 is explained for a given selection"
        # The selection is fixed: a map explains the classification of these patches, not their choice.
        return NetworkView(self.network, lambda images: self.predict(images, selection), self.stage_2.readout)

    @property
    def network(self) -> nn.Module:
        """Stage 2's backbone."""
        return self.stage_2.backbone

    @property
    def stages(self) -> tuple[nn.Module, ...]:
        """Both stages."""
        return self.stage_1, self.stage_2

    def forward(self, images: Tensor, **options: Any) -> TwoStageOutput:
        """Both stages: images [B, 3, H, W] -> TwoStageOutput; same options as `StageOne.forward`."""
        stage_1 = self.select(images, **options)
        return TwoStageOutput(self.predict(images, stage_1.selection), stage_1)


def _input_size(config: ModelConfig, image_size: tuple[int, int]) -> tuple[int, int]:
    """Size of stage 1's input for images of `image_size`. Raises UserError if one side cannot stand for both."""
    side = config.stage_1_image_size
    if side and image_size[0] != image_size[1]:
        raise UserError(f"model.stage_1_image_size={side} makes square images, but data.image_size is {image_size}")
    return (side, side) if side else image_size


def stage_1_view(model: ImageClassifier, stage_1: StageOne) -> NetworkView:
    """Stage 1 of a model with parts, as a classifier of its own. Its backbone always runs, for methods that read it."""
    return NetworkView(
        stage_1.backbone, lambda images: select_parts(model, images, one_time=True).class_logits, "patches"
    )


def _check(config: ModelConfig, model: TwoStageModel) -> None:
    if config.selector != "parts":
        raise UserError(f"model.selector={config.selector} makes a SelectedViT; use build_model or its from_pretrained")
    check_masked_vit(config, model.stage_2)
    if config.mask_resolution == "pixel" and (config.mask_kind, config.mask_gradient) != ("hard", "detached"):
        raise UserError("model.mask_resolution=pixel needs model.mask_kind=hard and model.mask_gradient=detached")
    if config.mask_gradient == "straight_through" and config.mask_kind == "hard":
        model.stage_2.require_plain_blocks("model.mask_gradient=straight_through")


def with_mask(selection: Selection, mask: Tensor) -> Selection:
    """The selection with another hard mask of patches [B, h, w] bool, without pixels and gate."""
    return replace(selection, mask=mask, pixels=None, gate=None)
