"""Grad-CAM (Selvaraju et al. 2017) on a CNN's features or a ViT's tokens, and on attention (Chefer et al. 2021).

Shape legend: B images, H heads, P prefix tokens, N patches (or places of a feature map), D width.
"""

import contextlib
import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from torch import Tensor, nn

from common.errors import UserError
from explain.attention_capture import record
from explain.explained_model import ExplainedModel, require_attention, require_block
from explain.gradients import at_least_float
from explain.types import METHODS, Explainer


@METHODS.register("gradcam")
@dataclass(frozen=True)
class GradCAM(Explainer):
    """relu(sum_k w_k a_k), w_k the mean over patches of dy/da_k. a [N, D] are the patch tokens behind a block's first
    norm, of a CNN the last features. Hidden patches of a stage 2, which no gradient reaches, are 0."""

    layer: int = -1
    """The block, from 0; negative: from the end. The last by default."""
    module: str = ""
    """What gives a, by its name in the backbone, in the place of `layer`: layer4.0, stages.2, blocks.9.norm2, ..."""
    relu: bool = True
    """Keep what speaks for the class only."""
    compat: Literal["", "chefer"] = ""
    """chefer: a are the block's attention weights from the class token to the patches, one channel per head."""

    class_specific: ClassVar[bool] = True
    keeps_graph: ClassVar[bool] = True

    def check(self, explained: ExplainedModel) -> None:
        """Raise UserError for a block or module that is not there; compat=chefer needs attention."""
        if self.compat:
            require_attention(explained)
        if self.module or not isinstance(explained.network, VisionTransformer):
            module_named(explained.network, self.module)
        else:
            require_block(explained, self.layer)

    def maps(self, explained: ExplainedModel, images: Tensor, targets: Tensor | None) -> Tensor:
        """See `Explainer.maps`; of a CNN, "patches" are the places of its features."""
        if self.compat:
            values, gradient = _attention_row(explained, images, targets, self.layer)
            maps = (values * gradient.mean(1, keepdim=True)).mean(-1).unflatten(1, explained.grid(images))
        else:
            values, gradient = self._features(explained, images, targets)
            maps = (values * gradient.mean((1, 2), keepdim=True)).sum(-1)
        if explained.selection is not None:
            maps = maps.masked_fill(~explained.selection.mask, 0)
        return maps.relu() if self.relu else maps

    def _features(self, explained: ExplainedModel, images: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        """a [B, h, w, D] and dy/da."""
        named = bool(self.module) or not isinstance(explained.network, VisionTransformer)
        place = module_named(explained.network, self.module) if named else explained.vit.blocks[self.layer]
        with _caught(place, explained.graph, whole=named) as caught:
            score = explained.target_score(explained.logits(images), targets)
        (gradient,) = torch.autograd.grad(score, caught, create_graph=explained.graph)
        return _on_grid(caught[0], explained, images), _on_grid(gradient, explained, images)


def module_named(network: nn.Module, name: str) -> nn.Module:
    """The module of that name; without a name timm's last stage of features. Raises UserError where there is none."""
    name = name or cast(Any, network).feature_info[-1]["module"]
    known = dict(network.named_modules())
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0)
    raise UserError(f"--module: a {type(network).__name__} has no {name!r}; nearest: {', '.join(near)}")


def _on_grid(t: Tensor, explained: ExplainedModel, images: Tensor) -> Tensor:
    """[B, h, w, D] of tokens [B, P + N, D] or features [B, D, h, w]."""
    t = at_least_float(t)
    if t.ndim == 3:
        return t[:, explained.num_prefix :].unflatten(1, explained.grid(images))
    return t if getattr(explained.network, "output_fmt", "NCHW") == "NHWC" else t.movedim(1, -1)


def _attention_row(
    explained: ExplainedModel, images: Tensor, targets: Tensor | None, layer: int
) -> tuple[Tensor, Tensor]:
    """The classifier's row of the block's A and G, patches and heads last: [B, N, H] each."""
    with record([explained.vit.blocks[layer]], cut=True, graph=explained.graph) as capture:
        score = explained.target_score(explained.logits(images), targets)
    capture.gradients(score)

    def row(of: str) -> Tensor:
        heads = torch.cat([getattr(attention, of)(explained.rows()) for attention in capture.attentions], dim=1)
        return heads.mean(2)[..., explained.num_prefix :].transpose(1, 2)

    return row("weights"), row("weights_gradient")


@contextlib.contextmanager
def _caught(place: nn.Module, graph: bool, whole: bool) -> Iterator[list[Tensor]]:
    """Inside, a forward pass leaves the output of a module, or of a block's norm before the attention (not `whole`).

    Blocks without one norm there (norms behind, or one per parallel branch) give their input. It is a leaf of the graph
    unless its own `graph` is kept.
    """
    caught: list[Tensor] = []

    def catch(values: Tensor) -> Tensor:
        caught.append(values if graph and values.requires_grad else values.detach().requires_grad_())
        return caught[-1]

    def at_input(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return catch(args[0]), *args[1:]

    norm = getattr(place, "in_norm", None if isinstance(place, ResPostBlock) else getattr(place, "norm1", None))
    output = place if whole else norm
    if output is None:
        handle = place.register_forward_pre_hook(at_input)
    else:
        handle = output.register_forward_hook(lambda _, __, out: catch(out))
    try:
        yield caught
    finally:
        handle.remove()
