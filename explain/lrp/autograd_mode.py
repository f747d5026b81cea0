"""Relevance through any model: a forward pass whose backward can be asked for gradients or for relevance.

Inside `RelevanceMode` every operation on tracked data (what requires a gradient and is no parameter) is computed as
usual, but its backward is chosen here: operations that only move numbers keep autograd's; the others follow a rule of
explain/lrp/rules.py where relevance is wanted. An operation without a rule is refused by name.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from timm.layers import GELU, DropPath, GELUTanh, LayerScale, PatchEmbed, QuickGELU, RmsNorm
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from common.errors import UserError
from explain.explained_model import ExplainedModel
from explain.lrp.dispatch import MOVES, Operation, Rule, RuleSet, is_tracked, rule_for
from models.interface import is_two_stage

LAYERS = (
    *(nn.Linear, nn.Identity, nn.Dropout, DropPath, LayerScale, nn.LayerNorm, nn.RMSNorm, RmsNorm, nn.BatchNorm1d),
    *(nn.GELU, GELU, GELUTanh, QuickGELU, nn.SiLU, nn.ReLU, nn.Tanh, nn.Sigmoid),
)
"""Leaf modules whose operations have rules. What other modules compute themselves is checked as it runs."""


class _Ruled(torch.autograd.Function):
    """An operation whose backward is its gradient or its rule, whichever the mode asks for at that time."""

    @staticmethod
    def forward(ctx: Any, mode: "RelevanceMode", op: Operation, rule: Rule, *data: Tensor) -> Tensor:
        ctx.mode, ctx.op, ctx.rule = mode, op, rule
        return op.out.detach()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        rule = ctx.rule if ctx.mode.wants_relevance else Operation.gradient
        return None, None, None, *rule(ctx.op, outer[0])


class RelevanceMode(TorchFunctionMode):
    """See above. Enter it for the forward pass, leave it, then call `relevance` for what came out."""

    def __init__(self, root: nn.Module, rules: RuleSet = "ours", coupled: bool = False) -> None:
        """`root` names the layers in errors; `coupled`: residual sums over the whole batch, as published."""
        super().__init__()
        self.root, self.rules, self.coupled = root, rules, coupled
        self.wants_relevance = False

    def relevance(self, score: Tensor, of: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The relevance of each of `of` for `score`, a sum of outputs of the pass, each of which starts with 1.

        The graph stays, so that gradients can be asked for after it.
        """
        self.wants_relevance = True
        try:
            return torch.autograd.grad(score, of, retain_graph=True)
        finally:
            self.wants_relevance = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        kwargs = kwargs or {}
        if not torch.is_grad_enabled() or not any(map(is_tracked, _tensors((*args, *kwargs.values())))):
            return func(*args, **kwargs)
        name = func.__self__.__name__ if func.__name__ == "__get__" else func.__name__  # type: ignore[attr-defined]
        if name in MOVES:
            return func(*args, **kwargs)
        rule = rule_for(name, args, kwargs)
        if rule is not None:
            return self._ruled(func, args, kwargs, rule)
        out = func(*args, **kwargs)
        if any(x.is_floating_point() for x in _tensors([out])):
            raise UserError(f"{self._layer()}: lrp has no rule for its {name}; choose another method")
        return out

    def _ruled(self, func: Callable[..., Any], args: Any, kwargs: Mapping[str, Any], rule: Rule) -> Any:
        """The operation on leaves, so that it has a graph of its own, and the node that joins it to the outer one."""
        leaves, outer = [], []

        def leaf(x: Any) -> Any:
            if not is_tracked(x):
                return x
            outer.append(x)
            leaves.append(x.detach().requires_grad_())
            return leaves[-1]

        args, kwargs = tuple(map(leaf, args)), {key: leaf(x) for key, x in kwargs.items()}
        out = func(*args, **kwargs)
        operation = Operation(args, kwargs, tuple(leaves), out, self.rules, self.coupled)
        return _Ruled.apply(self, operation, rule, *outer)

    def _layer(self) -> str:
        """The module whose forward is running, found on the call stack: "blocks.3.mlp (Mlp)"."""
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
    """Raise UserError naming the first layer that runs and has no rule, or weights in half precision.

    `pixels`: relevance goes down to the image, so the patch embedding must be one plain convolution.
    """
    embed = explained.vit.patch_embed
    for name, layer in explained.module.named_modules():
        leaf = next(layer.children(), None) is None
        if leaf and _runs(explained, name) and layer not in set(embed.modules()) and not isinstance(layer, LAYERS):
            raise UserError(f"{name} ({type(layer).__name__}): lrp has no rule for it; choose another method")
    if pixels and type(embed) is not PatchEmbed:
        raise UserError(f"patch_embed ({type(embed).__name__}): lrp's full needs one plain convolution of patches")
    if next(explained.vit.parameters()).dtype not in (torch.float32, torch.float64):
        raise UserError("lrp divides by numbers near 1e-9: it needs float32 or float64 weights; call model.float()")


def _runs(explained: ExplainedModel, name: str) -> bool:
    """Whether the module `name` belongs to the stage that is explained, or to a model of one stage."""
    model = explained.module
    if not is_two_stage(model):
        return True
    return name.startswith("stage_2." if explained.network is model.network else "stage_1.")
