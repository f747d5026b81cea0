"""Grad-CAM on the tokens of a ViT, the features of a CNN, or the attention weights of a block.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017:

    map = relu(sum_k w_k a_k),  w_k = mean over patches of dy/da_k

With compat=chefer a_k are the class token's attention weights in head k, as in the baseline of Chefer, Gur and Wolf,
"Transformer Interpretability Beyond Attention Visualization", CVPR 2021.

Shape suffixes: B images, H heads, R rows, P prefix tokens, N patches (h x w of them, or positions of a CNN's feature
map), D channels.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from timm.models.eva import EvaBlockPostNorm
from timm.models.vision_transformer import ResPostBlock
from timm.models.vision_transformer_relpos import ResPostRelPosBlock
from torch import Tensor, nn

from common.errors import UserError
from explain.attention_capture import record
from explain.explained_model import ExplainedModel, require_attention, require_block, require_row
from explain.features import as_features, find_module, first_tensor, last_stage, tokens_order
from explain.gradients import at_least_float
from explain.isolation import gradients
from explain.types import METHODS, Explainer
from explain.vits import ReadableViT

FIRST_NORMS = ("in_norm", "norm1", "layernorm_before", "layer_norm1")
"""Names of the norm before a block's attention: of timm's ParallelScalingBlock, of timm's other blocks and Hugging
Face's DINOv2 and DINOv3, of Hugging Face's ViT, and of its CLIP and SigLIP."""
POST_NORM = (ResPostBlock, ResPostRelPosBlock, EvaBlockPostNorm)
"""Blocks whose norms come after attention and MLP."""
BEFORE = "choose one before"


@METHODS.register("gradcam")
@dataclass(frozen=True)
class GradCAM(Explainer):
    """Of a ViT, a are the patch tokens after a block's first norm; of other networks, the last features.

    Patches hidden from stage 2 get 0, because no gradient reaches them.
    """

    layer: int = -1
    """The block, from 0; negative: from the end."""
    module: str = ""
    """Use the output of this module of the backbone instead of `layer`: layer4.0, stages.2, blocks.9.norm2, ..."""
    relu: bool = True
    """Keep only positive values, which support the class."""
    compat: Literal["", "chefer"] = ""
    """chefer: a are the block's attention weights from the class token to the patches, one channel per head."""

    keeps_graph: ClassVar[bool] = True

    @property
    def drops_hidden(self) -> bool:
        """Except with compat, where w_k is also a mean over dy/dA of hidden patches, which is not 0."""
        return not self.compat

    def check(self, explained: ExplainedModel) -> None:
        """Raise UserError for a block or module that does not exist; compat=chefer needs attention."""
        if self.compat and self.module:
            raise UserError("--module: compat=chefer reads the attention of a block; give --layer instead")
        if self.compat:
            require_attention(explained)
            require_row(explained, self.layer)
        if self.module:
            find_module(explained.network, self.module)
        elif isinstance(explained.network, ReadableViT):
            require_block(explained, self.layer)

    def maps(self, explained: ExplainedModel, images: Tensor, targets: Tensor | None) -> Tensor:
        """See `Explainer.maps`; of a CNN, h x w is the size of its features."""
        values = self._attention if self.compat else self._features
        a_BhwD, gradient_BhwD = values(explained, images, targets)
        weighted_BhwD = a_BhwD * gradient_BhwD.mean((1, 2), keepdim=True)
        maps = weighted_BhwD.mean(-1) if self.compat else weighted_BhwD.sum(-1)
        if explained.selection is not None:
            maps = maps.masked_fill(~explained.selection.mask, 0)
        return maps.relu() if self.relu else maps

    def _features(self, explained: ExplainedModel, images: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        """a and dy/da, [B, h, w, D] each."""
        module = self.module
        if not module and not isinstance(explained.network, ReadableViT):
            module = last_stage(explained.network, images)
        source, at_input, call, calls = self._source(explained, module)
        with _capture(source, at_input, call, calls, explained.graph) as features:
            logits = explained.logits(images)
        name = module or f"the input of the attention of blocks.{self.layer}"
        if not logits.requires_grad:
            raise UserError(f"--module: the class score does not read {name}, or has no derivative; {BEFORE}")
        score = explained.target_score(logits, targets)
        (gradient,) = gradients(score, features, [name], create_graph=explained.graph)
        a, grid = features[0], None
        if a.ndim == 3 and not isinstance(explained.network, ReadableViT):
            grid = tokens_order(a, explained.network, images)
        if grid is not None:
            a, gradient = (t[:, -grid[0] * grid[1] :].unflatten(1, grid) for t in (a, gradient))
        a_BhwD, gradient_BhwD = (_on_grid(t, explained, images) for t in (a, gradient))
        if module and explained.selection is None and not gradient_BhwD.any():
            raise UserError(f"--module: the class score does not read the patches from {name}; {BEFORE}")
        return a_BhwD, gradient_BhwD

    def _source(self, explained: ExplainedModel, module: str) -> tuple[nn.Module, bool, int, int]:
        """The module, whether to read its input, and which of how many calls: blocks may share modules."""
        if module:
            return find_module(explained.network, module), False, 0, 1
        sources = [_before_attention(block) for block in explained.blocks]
        source, at_input = sources[self.layer]
        shared = [index for index, (other, _) in enumerate(sources) if other is source]
        return source, at_input, shared.index(range(len(sources))[self.layer]), len(shared)

    def _attention(self, explained: ExplainedModel, images: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        """The classifier's row of the block's A and dy/dA, [B, h, w, H] each."""
        layers = [range(len(explained.blocks))[self.layer]]
        with record(explained.blocks, layers, stop_gradient=True, graph=explained.graph) as capture:
            score = explained.target_score(explained.logits(images), targets)
        capture.compute_gradients(score)

        def row(matrix: Literal["weights", "weights_gradient"]) -> Tensor:
            heads = [getattr(attention, matrix)(explained.rows()) for attention in capture.attentions]
            row_BHN = explained.mean_over_rows(torch.cat(heads, dim=1))
            return explained.on_grid(row_BHN.transpose(1, 2), images)

        return row("weights"), row("weights_gradient")


def _on_grid(t: Tensor, explained: ExplainedModel, images: Tensor) -> Tensor:
    """[B, h, w, D] of tokens [B, P + N, D] or [B, N, D], or of features [B, D, h, w] or [B, h, w, D].

    The patch grid must fit, or for other networks the proportions of the images. Raises UserError for another tensor.
    """
    t = at_least_float(t)
    network, same_batch = explained.network, len(t) == len(images)
    if isinstance(network, ReadableViT):
        grid = explained.grid(images)
        patches = grid[0] * grid[1]
        if same_batch and t.ndim == 3 and explained.kept is not None and t.shape[1] == explained.kept.shape[1]:
            return explained.on_grid(t, images)
        if same_batch and t.ndim == 3 and t.shape[1] in (patches, patches + explained.num_prefix):
            return t[:, -patches:].reshape(len(t), *grid, -1)
        if same_batch and t.ndim == 4 and grid in (t.shape[1:3], t.shape[2:]):
            return t.movedim(1, -1) if t.shape[2:] == grid else t
    elif same_batch and t.ndim == 4:
        features = as_features(t, network, images)
        if features is not None:
            return features
    what = f"neither the patch tokens nor a feature map of {len(images)} images"
    raise UserError(f"--module: its output {tuple(t.shape)} is {what}; choose another module, such as a block")


def _before_attention(block: nn.Module) -> tuple[nn.Module, bool]:
    """The norm before a block's attention; the block and True, for its input, if there is no single such norm.

    timm's ParallelThingsBlock has one per branch.
    """
    if isinstance(block, POST_NORM):
        return block, True
    norms: list[nn.Module] = [getattr(block, name) for name in FIRST_NORMS if hasattr(block, name)]
    return (norms[0], False) if norms else (block, True)


@contextlib.contextmanager
def _capture(module: nn.Module, at_input: bool, call: int, calls: int, graph: bool) -> Iterator[list[Tensor]]:
    """Inside, a forward pass appends the output of `module` to the list, the first of several; with `at_input`, its
    first input.

    It becomes a leaf of the autograd graph, unless `graph` asks to keep its own. `call`: which call of the module, from
    0. Raises UserError unless there are `calls` of them, and for an output that is no tensor.
    """
    captured: list[Tensor] = []
    count = 0

    def capture(values: Any) -> Any:
        nonlocal count
        count += 1
        if count - 1 != call:
            return values
        t = first_tensor(values)
        if t is None:
            raise UserError(f"--module: its output is a {type(values).__name__}, not a tensor; choose another module")
        captured.append(t if graph and t.requires_grad else t.detach().requires_grad_())
        passed = captured[-1].clone()  # the model may change it in place
        return passed if t is values else type(values)([passed, *values[1:]])

    if at_input:
        handle = module.register_forward_pre_hook(lambda _, args: (capture(args[0]), *args[1:]))
    else:
        handle = module.register_forward_hook(lambda _, __, out: capture(out))
    with handle:
        yield captured
    if count != calls:
        raise UserError(
            f"--module: a {type(module).__name__} that runs {count} times, not {calls}; choose another module"
        )
