"""Layer-wise relevance propagation for ViTs (Chefer, Gur and Wolf 2021, "transformer attribution") and its variants.

Relevance starts as 1 at the target logit and goes down by the rules of explain/lrp/rules.py. What reaches a block's
attention matrix is C; G is the gradient of the target logit there. The classifier's row of a product over blocks is
carried as a vector, from the last block down, so that no two N x N matrices are multiplied.

Shape legend: B images, H heads, N tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from common.errors import UserError
from explain.attention_capture import Attention, record
from explain.explained_model import ExplainedModel, require_attention
from explain.lrp.autograd_mode import RelevanceMode, require_rules
from explain.lrp.dispatch import RuleSet
from explain.lrp.rules import attention_matrix
from explain.rollout import readout_row
from explain.types import METHODS, Explainer
from models.backbone import patch_tokens
from models.part_discovery import draw_noise
from models.two_stage import StageOne

Variant = Literal[
    "transformer_attribution", "rollout", "last_layer", "last_layer_grad", "second_layer", "last_layer_attn", "full"
]
Compat = Literal["", "chefer"]
PRODUCTS = ("transformer_attribution", "rollout")
WITH_GRADIENT = ("transformer_attribution", "last_layer_grad")


@METHODS.register("lrp")
@dataclass(frozen=True)
class Lrp(Explainer):
    """E_h is the mean over heads, x⁺ the positive part, C and G those of a block (the last one where none is named)."""

    variant: Variant = "transformer_attribution"
    """transformer_attribution: product over blocks of I + E_h (G C)⁺. rollout: of I + E_h C⁺. last_layer: E_h C⁺.
    last_layer_grad: E_h (G C)⁺. second_layer: E_h C⁺ of the second block. last_layer_attn: E_h A. full: relevance of
    the pixels, [B, H, W]."""
    rules: RuleSet = "ours"
    """ours: the paper's. plain: the LRP it compares with, no rescaling of residuals, which can explode."""
    start_layer: int | None = None
    """First block of the products, from 0. None: 0."""
    compat: Compat = ""
    """chefer: starts at block 1 where no start is given; residual sums run over the whole batch."""

    class_specific: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raise UserError for an unknown name or a negative start."""
        for option, names in (("variant", Variant), ("rules", RuleSet), ("compat", Compat)):
            if getattr(self, option) not in get_args(names):
                known = ", ".join(filter(None, get_args(names)))
                raise UserError(f"--{option}: {getattr(self, option)!r}; known: {known}")
        if self.start_layer is not None and self.start_layer < 0:
            raise UserError(f"--start-layer: {self.start_layer} is below 0, the number of the first block")

    @property
    def resolution(self) -> Literal["patch", "pixel"]:
        """Pixels for the variant full, otherwise patches."""
        return "pixel" if self.variant == "full" else "patch"

    def check(self, explained: ExplainedModel) -> None:
        """Raise UserError naming the first layer without a rule, or where there is no block to start from."""
        require_attention(explained)
        require_rules(explained, pixels=self.variant == "full")
        if self._first_block() >= len(explained.vit.blocks):
            raise UserError(f"--start-layer: no block {self._first_block()} in a model of {len(explained.vit.blocks)}")

    def maps(self, explained: ExplainedModel, images: Tensor, targets: Tensor | None) -> Tensor:
        """See `Explainer.maps`."""
        with torch.autocast(images.device.type, enabled=False):
            if self.variant == "full":
                return self._of_pixels(explained, images, targets)
            row = self._of_tokens(explained, images, targets)
        return row[:, explained.num_prefix :].unflatten(1, explained.grid(images))

    def _mode(self, explained: ExplainedModel) -> RelevanceMode:
        return RelevanceMode(explained.module, self.rules, coupled=self.compat == "chefer")

    def _of_pixels(self, explained: ExplainedModel, images: Tensor, targets: Tensor | None) -> Tensor:
        images = images.detach().requires_grad_()
        with self._mode(explained) as mode:
            logits = scores_of(explained)(images)
        (relevance,) = mode.relevance(explained.target_score(logits, targets), [images])
        return relevance.sum(1)

    def _of_tokens(self, explained: ExplainedModel, images: Tensor, targets: Tensor | None) -> Tensor:
        """[B, N]. Nothing is tracked before the first attention that is read: its output is where the graph starts."""
        blocks = list(explained.vit.blocks)[self._first_block() :]
        with self._mode(explained) as mode, record(blocks) as capture:
            logits = scores_of(explained)(images)
        layers = capture.by_block() if self.variant in PRODUCTS else capture.by_block()[:1]
        score = explained.target_score(logits, targets)
        relevance = iter(mode.relevance(score, [attention.out for layer in layers for attention in layer]))
        if self.variant in WITH_GRADIENT:
            capture.gradients(score)
        with torch.no_grad():
            return self._row(explained, [[(attention, next(relevance)) for attention in layer] for layer in layers])

    def _first_block(self) -> int:
        """The first block that the variant reads; -1: the last one."""
        if self.variant in PRODUCTS:
            return int(self.compat == "chefer") if self.start_layer is None else self.start_layer
        return 1 if self.variant == "second_layer" else -1

    def _row(self, explained: ExplainedModel, layers: Sequence[Sequence[tuple[Attention, Tensor]]]) -> Tensor:
        """The classifier's row of the product of I + M, or of M alone; parallel attentions count as more heads."""
        row: Tensor | None = None
        for layer in reversed(layers):
            matrix = torch.stack([self._matrix(attention, R_out) for attention, R_out in layer]).mean(0)
            row = readout_row(explained, matrix) if row is None else row
            step = (row.unsqueeze(1) @ matrix).squeeze(1)
            row = row + step if self.variant in PRODUCTS else step
        assert row is not None  # `check` saw to it
        return row

    def _matrix(self, attention: Attention, R_out: Tensor) -> Tensor:
        """E_h of what the variant reads of an attention whose output has relevance R_out, [B, N, N]."""
        weights = attention.weights()
        if self.variant == "last_layer_attn":
            return weights.mean(1)
        C = attention_matrix(R_out, attention.out, weights, attention.v)
        return (C * attention.weights_gradient() if self.variant in WITH_GRADIENT else C).clamp_(min=0).mean(1)


def scores_of(explained: ExplainedModel) -> Callable[[Tensor], Tensor]:
    """[B, 3, H, W] -> [B, C]. Stage 1 with its part maps as given weights: no relevance goes to where a part is."""
    stage_1 = getattr(explained.module, "stage_1", None)
    if not isinstance(stage_1, StageOne) or explained.network is not stage_1.backbone:
        return explained.logits
    parts = stage_1.parts

    def scores(images: Tensor) -> Tensor:
        tokens = patch_tokens(explained.vit, images)
        generator = torch.Generator(images.device).manual_seed(0)  # as in `explained.select`
        noise = draw_noise(
            parts.config, (tokens.shape[0], tokens.shape[1]), images.device, training=False, generator=generator
        )
        with torch.no_grad():
            maps = parts(tokens, noise).maps
        return parts.class_scores(parts.part_features(tokens, maps), None).mean(-1)

    return scores
