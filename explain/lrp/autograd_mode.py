"""A forward pass whose backward pass computes gradients or relevance, on request, for any model.

Inside `RelevanceMode` every operation on tracked data (tensors that require a gradient; weights are frozen) is computed
as usual but gets a backward of ours. Operations that only move numbers keep autograd's backward. The others use their
rule from explain/lrp/rules.py when relevance is requested. An operation without a rule is an error that names it.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from timm.layers import GELU, DropPath, GELUTanh, LayerScale, PatchEmbed, QuickGELU, RelPosBias, RmsNorm
from timm.models.beit import RelativePositionBias
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from common.errors import UserError
from explain.explained_model import ExplainedModel
from explain.huggingface import PatchConvolution
from explain.isolation import gradients
from explain.lrp.dispatch import DATA_MOVEMENT, Operation, Rule, RuleSet, is_tracked, rule_for
from explain.lrp.rules import divide
from explain.vits import embedding
from models.interface import selects_patches

LAYERS = (
    *(nn.Linear, nn.Identity, nn.Dropout, DropPath, LayerScale, nn.LayerNorm, nn.RMSNorm, RmsNorm, nn.BatchNorm1d),
    nn.Embedding,
    *(nn.GELU, GELU, GELUTanh, QuickGELU, nn.SiLU, nn.ReLU, nn.Tanh, nn.Sigmoid, RelativePositionBias, RelPosBias),
)
"""Leaf modules whose operations all have rules. The operations of other modules are checked when they run."""
CLASS_TOKEN = (slice(None), 0)
"""The index of the class token in tokens [B, N, D]."""


class _OperationNode(torch.autograd.Function):
    """The operation as one node of the model's graph; its backward is its gradient or its rule."""

    @staticmethod
    def forward(ctx: Any, mode: "RelevanceMode", op: Operation, rule: Rule, *data: Tensor) -> Tensor:
        ctx.mode, ctx.op, ctx.rule = mode, op, rule
        return op.out.detach()

    @staticmethod
    def backward(ctx: Any, *of_out: Tensor) -> Any:
        rule = ctx.rule if ctx.mode.wants_relevance else Operation.gradient
        return None, None, None, *rule(ctx.op, of_out[0])  # nothing for mode, op and rule


class RelevanceMode(TorchFunctionMode):
    """See above. Run the forward pass inside the mode, leave it, then call `relevance` on a score of its output."""

    def __init__(self, root: nn.Module, rules: RuleSet = "ours", published: bool = False) -> None:
        """`root`: its layers are named in errors.

        `published`: residual sums run over the batch, and the relevance of every tensor x that several operations use,
        and of the class token that the head picks, becomes x q(R, x).
        """
        super().__init__()
        self.root, self.rules, self.published = root, rules, published
        self.wants_relevance = False
        self._uses: dict[int, list[Tensor]] = {}  # the tensor once for each operation that used it; keeps ids unique

    def relevance(self, score: Tensor, of: Sequence[Tensor], names: Sequence[str]) -> Sequence[Tensor]:
        """The relevance of each tensor in `of` for `score`, a sum of outputs that start with relevance 1 each.

        The graph is kept, so gradients can be computed afterwards. Raises UserError with the name of a tensor that
        the score does not depend on.
        """
        self.wants_relevance = True
        try:
            return gradients(score, of, names, retain_graph=True)
        finally:
            self.wants_relevance = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not torch.is_grad_enabled() or not any(map(is_tracked, _tensors((*args, *kwargs.values())))):
            return func(*args, **kwargs)
        # Attributes such as x.mT arrive as the __get__ of a property: its owner has the name.
        name = func.__self__.__name__ if func.__name__ == "__get__" else func.__name__
        if name in DATA_MOVEMENT:
            out = func(*args, **kwargs)
            if self.published and name == "__getitem__" and args[1] == CLASS_TOKEN:
                self._guard(out)
            return out
        rule = rule_for(name, args, kwargs)
        if rule is not None:
            return self._apply(func, args, kwargs, rule)
        out = func(*args, **kwargs)
        if any(x.is_floating_point() for x in _tensors([out])):  # comparisons, shapes and the like carry no relevance
            raise UserError(f"{self._running_layer()}: lrp has no rule for its {name}; choose another method")
        return out

    def _apply(self, func: Callable[..., Any], args: Any, kwargs: Mapping[str, Any], rule: Rule) -> Any:
        """Run the operation on leaves, which gives it a graph of its own, and join it to the model's graph as a node.

        The separate graph lets a rule compute the operation's gradient by itself, for any vector.
        """
        leaves, data = [], []

        def as_leaf(x: Any) -> Any:
            if not is_tracked(x):
                return x
            data.append(x)
            self._count_use(x)
            leaves.append(x.detach().requires_grad_())
            return leaves[-1]

        args, kwargs = tuple(map(as_leaf, args)), {key: as_leaf(x) for key, x in kwargs.items()}
        out = func(*args, **kwargs)
        operation = Operation(args, kwargs, tuple(leaves), out, self.rules, self.published)
        return _OperationNode.apply(self, operation, rule, *data)

    def __exit__(self, *error: Any) -> None:
        self._uses.clear()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def _count_use(self, x: Tensor) -> None:
        if not self.published:
            return
        uses = self._uses.setdefault(id(x), [])
        uses.append(x)
        if len(uses) == 2:
            self._guard(x)

    def _guard(self, x: Tensor) -> None:
        """Let the relevance R that all uses of x add up to pass the published guarded division, x q(R, x)."""
        values = x.detach()
        x.register_hook(lambda R: values * divide(R, values) if self.wants_relevance else None)

    def _running_layer(self) -> str:
        """The module whose forward is running: "blocks.3.mlp (Mlp)". It is the nearest `self` on the call stack."""
        names = {id(module): name or "the model" for name, module in self.root.named_modules()}
        frame = sys._getframe()
        while id(frame.f_locals.get("self")) not in names and frame.f_back is not None:
            frame = frame.f_back
        layer = frame.f_locals.get("self")
        return f"{names.get(id(layer), 'the model')} ({type(layer).__name__})"


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def require_rules(explained: ExplainedModel, pixels: bool) -> None:
    """Raise UserError naming the first layer that runs and has no rule, or for weights in half precision.

    Of Hugging Face's own layers, such as a LayerScale, the operations are checked when they run.

    `pixels`: relevance goes down to the image, so the patch embedding must be a plain convolution.
    """
    embed = embedding(explained.vit)
    if explained.first_read_block:
        why = "lrp has no rule for blocks that mix heads, nor for class attention"
        raise UserError(f"a {type(explained.vit).__name__}: {why}; choose another method")
    for name, layer in explained.module.named_modules():
        is_leaf = next(layer.children(), None) is None and not type(layer).__module__.startswith("transformers.")
        if is_leaf and _runs(explained, name) and layer not in set(embed.modules()) and not isinstance(layer, LAYERS):
            raise UserError(f"{name} ({type(layer).__name__}): lrp has no rule for it; choose another method")
    if pixels and type(embed) not in (PatchEmbed, PatchConvolution):
        raise UserError(f"patch_embed ({type(embed).__name__}): variant=full of lrp needs a plain patch convolution")
    if next(explained.vit.parameters()).dtype not in (torch.float32, torch.float64):
        raise UserError("lrp divides by numbers near 1e-9: it needs float32 or float64 weights; call model.float()")


def _runs(explained: ExplainedModel, name: str) -> bool:
    """Whether the module `name` is part of what is explained: of a two-stage model, only one stage is."""
    model = explained.module
    if not selects_patches(model):
        return True
    return name.startswith("stage_2." if explained.network is model.network else "stage_1.")
