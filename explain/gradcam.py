"""Grad-CAM (Selvaraju et al. 2017) on a ViT's tokens, and its form on attention (Chefer et al. 2021, a baseline).

Shape legend: B images, H heads, P prefix tokens, N patches, D width.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from timm.models.vision_transformer import ResPostBlock
from torch import Tensor, nn

from explain.gradients import at_least_float
from explain.registry import METHODS
from explain.subject import Subject, require_attention, require_block
from explain.tape import record
from explain.types import Explainer


@METHODS.register("gradcam")
@dataclass(frozen=True)
class GradCAM(Explainer):
    """relu(sum_k w_k a_k): a [N, D] are the patch tokens behind a block's first norm, w_k the mean over patches of
    dy/da_k. Hidden patches of a stage 2, which no gradient reaches, are 0."""

    layer: int = -1
    """The block, from 0; negative: from the end. The last by default."""
    relu: bool = True
    """Keep what speaks for the class only."""
    compat: Literal["", "chefer"] = ""
    """chefer: a are the block's attention weights from the class token to the patches, one channel per head."""

    class_specific: ClassVar[bool] = True

    def check(self, subject: Subject) -> None:
        """Raise UserError for a block that is not there; compat=chefer needs attention."""
        require_block(subject, self.layer)
        if self.compat:
            require_attention(subject)

    def maps(self, subject: Subject, images: Tensor, targets: Tensor | None) -> Tensor:
        """See `Explainer.maps`."""
        caught = _attention_row if self.compat else _tokens
        values, gradient = caught(subject, images, targets, self.layer)
        weight = gradient.mean(1, keepdim=True)
        maps = (values * weight).mean(-1) if self.compat else (values * weight).sum(-1)
        maps = maps.unflatten(1, subject.grid(images))
        if subject.selection is not None:
            maps = maps.masked_fill(~subject.selection.mask, 0)
        return maps.relu() if self.relu else maps


def _tokens(subject: Subject, images: Tensor, targets: Tensor | None, layer: int) -> tuple[Tensor, Tensor]:
    """Patch tokens that the block's attention reads, [B, N, D], and dy/d(tokens)."""
    with _leaf_at(subject.vit.blocks[layer]) as caught:
        score = subject.target_score(subject.logits(images), targets)
    (gradient,) = torch.autograd.grad(score, caught)
    patches = slice(subject.num_prefix, None)
    return at_least_float(caught[0][:, patches]), at_least_float(gradient[:, patches])


def _attention_row(subject: Subject, images: Tensor, targets: Tensor | None, layer: int) -> tuple[Tensor, Tensor]:
    """The classifier's row of the block's A and G, patches and heads last: [B, N, H] each."""
    with record([subject.vit.blocks[layer]], cut=True) as tape:
        score = subject.target_score(subject.logits(images), targets)
    tape.gradients(score)

    def row(of: str) -> Tensor:
        heads = torch.cat([getattr(attention, of)(subject.rows()) for attention in tape.attentions], dim=1)
        return heads.mean(2)[..., subject.num_prefix :].transpose(1, 2)

    return row("weights"), row("weights_gradient")


@contextlib.contextmanager
def _leaf_at(block: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, a forward pass leaves one leaf of the graph: the output of the block's norm before the attention.

    Blocks without one norm there (norms behind, or one per parallel branch) give their input.
    """
    caught: list[Tensor] = []

    def leaf(tokens: Tensor) -> Tensor:
        caught.append(tokens.detach().requires_grad_())
        return caught[-1]

    def at_input(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return leaf(args[0]), *args[1:]

    norm = getattr(block, "in_norm", None if isinstance(block, ResPostBlock) else getattr(block, "norm1", None))
    if norm is None:
        handle = block.register_forward_pre_hook(at_input)
    else:
        handle = norm.register_forward_hook(lambda _, __, out: leaf(out))
    try:
        yield caught
    finally:
        handle.remove()
