"""The view of a classifier that explanation methods get: a timm ViT or a CNN, and a function from images to logits."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor, nn

from common.errors import UserError
from explain.isolation import alone, derivatives_checked, usable, without_compilation
from explain.vits import (
    ATTENTIONS,
    ReadableViT,
    blocks,
    first_class_block,
    has_classifier,
    patch_grid,
    readout,
    require_known_pooling,
)
from explain.wrappers import eager, inner_vit, unwrapped, why_unread
from models.interface import ImageClassifier, Readout, Stage, selects_patches
from models.masked_attention import key_mask, token_counts, visible_first
from models.masked_vit import MaskedViT
from models.selection import Selection


@dataclass(frozen=True)
class ExplainedModel:
    """A model to explain. Build one with `explained_model`."""

    module: nn.Module
    """The whole model. It is in eval mode during an explanation and unchanged after it."""
    network: nn.Module
    """The ViT whose attention and tokens are read, or another network whose features are read."""
    logits: Callable[[Tensor], Tensor]
    """[B, 3, H, W] -> [B, C], differentiable."""
    readout: Readout
    """Which tokens the classifier reads after the last block."""
    selection: Selection | None = None
    """The patches that stage 2 sees; None if no patch is hidden."""
    graph: bool = False
    """Whether maps keep their graph, so that they can be differentiated (`explain.differentiable`)."""
    has_classes: bool = True
    """Whether `logits` are scores of classes. False for a ViT without classifier (num_classes=0)."""
    unread: str = ""
    """Why it is not known which tokens the classifier reads; empty if it is."""
    kept: Tensor | None = None
    """[B, L] int64: the tokens in stage 2's sequence, by their positions among all tokens; None: all. See
    `without_hidden`."""

    @property
    def vit(self) -> ReadableViT:
        """The network as a ViT. Raises UserError if it is not one."""
        if not isinstance(self.network, ReadableViT):
            kind = type(self.network).__name__
            what = "is not a ViT whose attention between all patches can be read"
            raise UserError(f"--method: a {kind} {what}; choose gradcam or a method at pixels")
        return self.network

    @property
    def blocks(self) -> list[nn.Module]:
        """The ViT's blocks, first block first; of compiled ones, the module inside."""
        return [eager(block) for block in blocks(self.vit)]

    @property
    def first_read_block(self) -> int:
        """The first block whose attention has rows for the tokens that the classifier reads: 0, but for CaiT."""
        return first_class_block(self.vit)

    @property
    def num_prefix(self) -> int:
        """Number of tokens before the patch tokens: class token and registers."""
        return int(self.vit.num_prefix_tokens)

    def rows(self) -> slice:
        """The tokens that the classifier reads: the class token (and DeiT's distillation token), or all patches.

        For a classifier that reads both (gap_cls): all tokens, including registers.
        """
        if self.readout == "class_token":
            return slice(0, 2 if isinstance(self.vit, VisionTransformerDistilled) else 1)
        return slice(self.num_prefix if self.readout == "patches" else 0, None)

    def grid(self, images: Tensor) -> tuple[int, int]:
        """(h, w): the patch grid of these images."""
        return patch_grid(self.vit, images)

    def readout_row(self, like_BNN: Tensor) -> Tensor:
        """[B, N] weights that sum to 1: equal over the tokens that the classifier reads, class token or patches.

        If stage 2 averages patches, these are the visible ones (with a gate, weighted by it); 0 if there are none.
        """
        row_BN = like_BNN.new_zeros(like_BNN.shape[0], like_BNN.shape[-1])
        row_BN[:, self.rows()] = self._weights_of_rows(row_BN)
        return row_BN / row_BN.sum(1, keepdim=True).clamp_min(torch.finfo(row_BN.dtype).tiny)

    def mean_over_rows(self, t: Tensor) -> Tensor:
        """Values of the query tokens `rows()` [B, ..., R, N] -> their mean [B, ..., N], weighted as `readout_row`."""
        weights = self._weights_of_rows(t)
        if weights.ndim == 0:
            return t.mean(-2)
        weights = weights / weights.sum(1, keepdim=True).clamp_min(torch.finfo(t.dtype).tiny)
        return (t * weights.view(len(t), *[1] * (t.ndim - 3), -1, 1)).sum(-2)

    def _weights_of_rows(self, like: Tensor) -> Tensor:
        """1, or [B, R] where stage 2 averages the patches that it sees."""
        if self.selection is None or self.readout != "patches":
            return like.new_ones(())
        gate = self.selection.gate
        weights_BN = (self.selection.mask if gate is None else gate).flatten(1).to(like)
        prefix = self.num_prefix
        return weights_BN if self.kept is None else weights_BN.gather(1, self.kept[:, prefix:] - prefix)

    def over_all_tokens(self, t_BRN: Tensor, images: Tensor) -> Tensor:
        """Attention of one block [B, R, N] over all tokens, prefix tokens included: zeros where there is none.

        CaiT's blocks attend either between patches, or from the class token alone.
        """
        height, width = self.grid(images)
        tokens = height * width + self.num_prefix if self.kept is None else self.kept.shape[1]
        rows, columns = tokens - t_BRN.shape[1], tokens - t_BRN.shape[2]
        return F.pad(t_BRN, (columns, 0, rows, 0) if columns else (0, 0, 0, rows)) if rows else t_BRN

    def on_grid(self, tokens: Tensor, images: Tensor) -> Tensor:
        """Values of the tokens [B, N, ...] -> those of the patches [B, h, w, ...]; prefix tokens are dropped.

        Patches that are not in the sequence get 0.
        """
        height, width = self.grid(images)
        if self.kept is not None:
            everywhere = tokens.new_zeros(len(tokens), self.num_prefix + height * width, *tokens.shape[2:])
            index = self.kept.view(*self.kept.shape, *[1] * (tokens.ndim - 2)).expand_as(tokens)
            tokens = everywhere.scatter(1, index, tokens)
        return tokens[:, self.num_prefix :].reshape(len(tokens), height, width, *tokens.shape[2:])

    def target_score(self, logits: Tensor, targets: Tensor | None) -> Tensor:
        """Sum over the batch of each image's target logit (targets [B] int64; None: its predicted class).

        Images of a batch do not interact in a ViT, so the gradient of the sum is the gradient of each image's logit.
        Raises UserError unless there is one target per image, or if gradients are on and the logits have none.
        """
        if torch.is_grad_enabled() and not logits.requires_grad:
            raise UserError("the class scores have no derivative (frozen, quantized or detached); use rollout")
        chosen = logits.argmax(1) if targets is None else targets
        if chosen.shape != logits.shape[:1]:
            raise UserError(f"targets: shape {tuple(chosen.shape)} for {len(logits)} images; give one class per image")
        return logits.gather(1, chosen[:, None]).sum()


def explained_model(
    model: nn.Module, images: Tensor, stage: Stage = 2, graph: bool = False, selection: Selection | None = None
) -> ExplainedModel:
    """The part of `model` to explain for these images [B, 3, H, W].

    `model`: an image classifier, or a ViT without one. `stage`, for a two-stage model: 1 explains the class scores of
    stage 1's parts; 2 explains stage 2, with the selection that the model makes for these images held fixed. `graph`:
    see `ExplainedModel.graph`; the selection then keeps its graph. Raises UserError for a model of this project that
    cannot be explained. Of a wrapped model (see `explain.wrappers`), the module inside is explained. `selection`: of
    these images, if it is known already (`selected`).
    """
    model = unwrapped(model)
    if stage == 2 and selects_patches(model) and selection is None:
        selection = selected(model, images, graph)
    if isinstance(model, ImageClassifier):
        check_explainable(model)
        view = model.network_view(stage, selection)
        return ExplainedModel(model, eager(view.network), view.logits, view.readout, selection, graph)
    inner = inner_vit(model)
    if inner is None:
        return ExplainedModel(model, model, model, "patches", None, graph)
    vit, unread = inner[1], ""
    if vit is not model:
        with evaluated(model):
            unread = why_unread(model, vit, images)
    has_classes = vit is not model or has_classifier(vit)
    return ExplainedModel(model, vit, model, readout(vit, has_classes), None, graph, has_classes, unread)


def selected(model: ImageClassifier, images: Tensor, graph: bool = False) -> Selection:
    """What stage 2 of a model that selects patches sees of images [B, 3, H, W]."""
    with evaluated(model), torch.inference_mode(False), torch.set_grad_enabled(graph):
        return model.selection(images if graph else usable(images)).counted()


def check_explainable(model: ImageClassifier) -> None:
    """Raise UserError for a model of this project that no method can explain."""
    if model.not_explainable:
        raise UserError(f"cannot explain a {type(model).__name__}: {model.not_explainable}")


def with_selection(explained: ExplainedModel, selection: Selection) -> ExplainedModel:
    """The same stage 2 with another selection."""
    view = cast(ImageClassifier, explained.module).network_view(2, selection)
    return replace(explained, logits=view.logits, selection=selection, kept=None)


def without_hidden(explained: ExplainedModel) -> ExplainedModel:
    """Stage 2 with only visible tokens in its sequence, padded to the largest count of the batch: the same logits.
    What is not stage 2, or has a gate, is returned as it is."""
    selection, network = explained.selection, explained.network
    stage_2 = [part for part in explained.module.modules() if isinstance(part, MaskedViT) and part.backbone is network]
    if selection is None or selection.gate is not None or not stage_2:
        return explained
    with torch.inference_mode(False):
        mask_BN = usable(selection.mask).flatten(1)
        lengths = token_counts(selection.counts, mask_BN.shape[1], explained.num_prefix)
        kept = visible_first(key_mask(mask_BN, explained.num_prefix), lengths)
    # Fewer tokens than patches: the number of tokens then tells which of the two a tensor holds.
    return replace(explained, kept=kept) if kept.shape[1] < mask_BN.shape[1] else explained


def require_attention(explained: ExplainedModel) -> None:
    """Raise UserError if the model's attention cannot be read, as far as its modules and its pooling show it.

    The forward pass checks the rest: `explain.attention_capture.record`.
    """
    if not isinstance(explained.module, ImageClassifier):
        require_known_pooling(explained.vit, explained.has_classes)
    if explained.unread:
        why = f"which tokens a {type(explained.module).__name__} reads is not known, because {explained.unread}"
        raise UserError(f"{why}; choose a method without attention")
    for index, block in enumerate(explained.blocks):
        for kind in [type(part) for part in block.modules() if hasattr(part, "fused_attn")]:
            if kind.__module__.startswith("timm.") and not issubclass(kind, ATTENTIONS):
                why = f"blocks.{index}: a {kind.__name__} has no attention matrix that could be rebuilt"
                raise UserError(f"{why}; choose a method without attention")


def require_block(explained: ExplainedModel, layer: int) -> None:
    """Raise UserError unless the model has a block `layer`, from 0, or from the end with -1."""
    depth = len(explained.blocks)
    if not -depth <= layer < depth:
        raise UserError(f"--layer: {layer}; the model has blocks 0 to {depth - 1}, or -{depth} to -1")


def require_row(explained: ExplainedModel, layer: int) -> None:
    """Raise UserError unless the model has a block `layer` in whose attention the classifier's tokens have a row."""
    require_block(explained, layer)
    if range(len(explained.blocks))[layer] < explained.first_read_block:
        kind, first = type(explained.vit).__name__, explained.first_read_block
        raise UserError(f"--layer: {layer}; the class token of a {kind} attends from block {first} on")


@contextlib.contextmanager
def evaluated(module: nn.Module) -> Iterator[None]:
    """Put the module in eval mode; restore the mode of every submodule afterwards.

    Other threads that explain a model with a part of this one wait, and compiled parts run eagerly.
    """
    with alone(module), without_compilation():
        training = [part for part in module.modules() if part.training]
        if training:
            module.eval()
        try:
            yield
        finally:
            for part in training:
                part.training = True


@contextlib.contextmanager
def explainable(explained: ExplainedModel) -> Iterator[None]:
    """The state that every method runs in: eval mode, gradients on, weights frozen, fused attention on, stage 2 with
    all tokens in the sequence or those in `explained.kept`, nothing compiled. Everything is restored afterwards.

    Frozen weights save the memory of their gradients; a method makes its own leaf of the graph. If maps keep their
    graph, weights are not frozen. Explanations of one model by several threads wait for each other. Raises UserError
    where a gradient is lost: see `derivatives_checked`.
    """
    changed: list[tuple[object, str, object]] = []

    def change(owner: object, name: str, value: object) -> None:
        changed.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    with contextlib.ExitStack() as stack:
        stack.enter_context(evaluated(explained.module))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(derivatives_checked(explained.module))
        try:
            for part in explained.network.modules():
                if hasattr(part, "fused_attn"):
                    change(part, "fused_attn", True)
            for part in explained.module.modules():
                if isinstance(part, MaskedViT):
                    change(part, "path", "dense" if explained.kept is None else "gathered")
            if hasattr(explained.network, "grad_checkpointing"):
                change(explained.network, "grad_checkpointing", False)
            for parameter in () if explained.graph else explained.module.parameters():
                change(parameter, "requires_grad", False)
            yield
        finally:
            for owner, name, value in reversed(changed):
                setattr(owner, name, value)
