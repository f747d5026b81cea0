"""LRP: layer-wise relevance propagation for ViTs ("transformer attribution") and its variants.

Chefer, Gur and Wolf, "Transformer Interpretability Beyond Attention Visualization", CVPR 2021:

    map = the classifier's row of M_L ... M_1,  M_l = I + E_h[max(G_l * C_l, 0)]

C_l is the relevance of the attention weights of block l, G_l the gradient of the target's logit there, E_h the mean
over heads. Relevance starts as 1 at that logit and is propagated by the rules of explain/lrp/rules.py. Only the
classifier's row of the product is computed, from the last block to the first, without products of N x N matrices. The
row starts with the weights of the tokens that the classifier reads; these weights are left out of the map. They are the
same for every patch, and 1/N would swallow the relevance, which can be many orders of magnitude smaller.

Shape suffixes: B images, H heads, N tokens.
"""

import contextlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from common.errors import UserError
from explain.attention_capture import Attention, record
from explain.explained_model import ExplainedModel, require_attention
from explain.isolation import at_least
from explain.lrp.autograd_mode import RelevanceMode, require_rules
from explain.lrp.dispatch import RuleSet
from explain.lrp.rules import attention_matrix
from explain.rollout import check_start
from explain.types import METHODS, Explainer
from models.part_discovery import draw_noise
from models.two_stage import StageOne

Variant = Literal[
    "transformer_attribution", "rollout", "last_layer", "last_layer_grad", "second_layer", "second_layer_grad",
    "last_layer_attn", "full",
]  # fmt: skip
PRODUCTS = ("transformer_attribution", "rollout")
WITH_GRADIENT = ("transformer_attribution", "last_layer_grad", "second_layer_grad")


@METHODS.register("lrp")
@dataclass(frozen=True)
class Lrp(Explainer):
    """E_h is the mean over heads, x⁺ the positive part of x; C, G and A are those of the last block unless stated."""

    variant: Variant = "transformer_attribution"
    """transformer_attribution: product over blocks of I + E_h (G C)⁺. rollout: of I + E_h C⁺. last_layer: E_h C⁺.
    last_layer_grad: E_h (G C)⁺. second_layer, second_layer_grad: the same two of the second block. last_layer_attn:
    E_h A. full: relevance of the pixels, [B, H, W]."""
    rules: RuleSet = "ours"
    """ours: the paper's. plain: the LRP it compares with, without rescaled residuals; its values can explode."""
    start_layer: int | None = None
    """First block of the products, from 0. None: 0."""
    compat: Literal["", "chefer"] = ""
    """chefer: start_layer defaults to 1; residual sums run over the whole batch; the relevance of a tensor that is used
    twice, and of the class token, passes another guarded division."""
    precision: Literal["float64", "model"] = "float64"
    """float64: forward pass and relevance are computed in float64, because the rules divide by sums that cancel. model:
    in the precision of the weights; the maps of a float32 model can then be mostly rounding errors."""

    drops_hidden: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raise UserError for an unknown name or a negative start."""
        super().__post_init__()
        check_start(self.start_layer)

    @property
    def resolution(self) -> Literal["patch", "pixel"]:
        """Pixels for variant=full, otherwise patches."""
        return "pixel" if self.variant == "full" else "patch"

    def check(self, explained: ExplainedModel) -> None:
        """Raise UserError naming the first layer without a rule, or if there is no block to start from."""
        require_attention(explained)
        require_rules(explained, pixels=self.variant == "full")
        if self._first_block() >= len(explained.blocks):
            raise UserError(f"--start-layer: no block {self._first_block()} in a model of {len(explained.blocks)}")

    def maps(self, explained: ExplainedModel, images: Tensor, targets: Tensor | None) -> Tensor:
        """See `Explainer.maps`."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.autocast(images.device.type, enabled=False))
            if self.precision == "float64":
                stack.enter_context(at_least(torch.float64, explained.module))
                images = images.double()
            elif images.dtype != torch.float64:
                warnings.warn("lrp in float32: maps can be mostly rounding errors; use precision=float64", stacklevel=2)
            if self.variant == "full":
                return self._pixel_relevance(explained, images, targets)
            return explained.on_grid(self._token_relevance(explained, images, targets), images)

    def _mode(self, explained: ExplainedModel) -> RelevanceMode:
        return RelevanceMode(explained.module, self.rules, published=self.compat == "chefer")

    def _pixel_relevance(self, explained: ExplainedModel, images: Tensor, targets: Tensor | None) -> Tensor:
        images = images.detach().requires_grad_()
        mode = self._mode(explained)
        with mode:
            logits = logits_with_fixed_parts(explained)(images)
        (relevance,) = mode.relevance(explained.target_score(logits, targets), [images], ["the pixels"])
        return relevance.sum(1)

    def _token_relevance(self, explained: ExplainedModel, images: Tensor, targets: Tensor | None) -> Tensor:
        """[B, N]."""
        mode = self._mode(explained)
        # The output of the first recorded attention is where the graph starts: nothing before it is tracked.
        layers = range(len(explained.blocks))[self._first_block() :]
        with mode, record(explained.blocks, layers) as capture:
            logits = logits_with_fixed_parts(explained)(images)
        blocks = capture.by_block() if self.variant in PRODUCTS else capture.by_block()[:1]
        score = explained.target_score(logits, targets)
        read = [attention for block in blocks for attention in block]
        relevance = iter(mode.relevance(score, [each.out for each in read], [each.name for each in read]))
        if self.variant in WITH_GRADIENT:
            capture.compute_gradients(score)
        with torch.no_grad():
            return self._readout(explained, [[(attention, next(relevance)) for attention in block] for block in blocks])

    def _first_block(self) -> int:
        """The first block that the variant reads; -1: the last one."""
        if self.variant in PRODUCTS:
            return int(self.compat == "chefer") if self.start_layer is None else self.start_layer
        return 1 if self.variant in ("second_layer", "second_layer_grad") else -1

    def _readout(self, explained: ExplainedModel, blocks: Sequence[Sequence[tuple[Attention, Tensor]]]) -> Tensor:
        """The classifier's row [B, N] of the product of I + M (PRODUCTS) minus its row of I, or else of M.

        M is the mean over parallel attentions.
        """
        read_BN = added_BN = torch.zeros(())
        for depth, block in enumerate(reversed(blocks)):
            M_BNN = torch.stack([self._head_mean(attention, R_out) for attention, R_out in block]).mean(0)
            if depth == 0:
                read_BN = explained.readout_row(M_BNN)
                added_BN = torch.zeros_like(read_BN)
            added_BN = added_BN + ((read_BN + added_BN).unsqueeze(1) @ M_BNN).squeeze(1)
        return added_BN

    def _head_mean(self, attention: Attention, R_out: Tensor) -> Tensor:
        """E_h of the matrix that the variant uses, [B, N, N]. R_out [B, H, N, D]: relevance of the attention output."""
        attention.require_scores()
        A_BHNN = attention.weights()
        if self.variant == "last_layer_attn":
            return A_BHNN.mean(1)
        C_BHNN = attention_matrix(R_out, attention.out, A_BHNN, attention.v)
        if self.variant in WITH_GRADIENT:
            C_BHNN = C_BHNN * attention.weights_gradient()
        return C_BHNN.clamp_(min=0).mean(1)


def logits_with_fixed_parts(explained: ExplainedModel) -> Callable[[Tensor], Tensor]:
    """The logits [B, 3, H, W] -> [B, C] to propagate relevance from.

    Of stage 1, the part maps are treated as constant weights: no relevance goes to where a part is. Otherwise these are
    the logits of the explained model.
    """
    stage_1 = getattr(explained.module, "stage_1", None)
    if not isinstance(stage_1, StageOne) or explained.network is not stage_1.backbone:
        return explained.logits
    parts = stage_1.parts

    def logits(images: Tensor) -> Tensor:
        tokens = stage_1.tokens(images)
        generator = torch.Generator(images.device).manual_seed(0)  # as in models.interface.select_parts
        noise = draw_noise(parts.config, tokens.shape[:2], images.device, training=False, generator=generator)
        with torch.no_grad():
            maps = parts(tokens, noise).maps
        return parts.class_scores(parts.part_features(tokens, maps), None).mean(-1)

    return logits
