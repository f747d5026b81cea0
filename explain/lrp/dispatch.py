"""Which rule of explain/lrp/rules.py holds for which torch function.

A rule gets the operation as it ran and the relevance R of its output, and returns the relevance of each tracked input.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from explain.attention_capture import Attention
from explain.lrp import rules as relevance

RuleSet = Literal["ours", "plain"]


@dataclass(frozen=True)
class Operation:
    """One operation as it ran, on leaves of a graph of its own."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    data: tuple[Tensor, ...]
    """The tracked ones among its arguments."""
    out: Tensor
    rules: RuleSet
    coupled: bool
    """Residual sums over the whole batch, as published."""

    def tracks(self, argument: Tensor) -> bool:
        """Whether relevance goes to `argument`."""
        return any(argument is tracked for tracked in self.data)

    def gradient(self, of_out: Tensor) -> tuple[Tensor, ...]:
        """Vector-Jacobian product: what reaches each of `data`."""
        return torch.autograd.grad(self.out, self.data, of_out, retain_graph=True)


Rule = Callable[[Operation, Tensor], Sequence[Tensor]]
"""(operation, relevance of its output) -> relevance of each of its `data`."""


def _pass_on(op: Operation, R: Tensor) -> list[Tensor]:
    """Norms, activations, softmax, scaling: all of it; a product of two tracked tensors gives half to each."""
    share = R if len(op.data) == 1 else R / len(op.data)
    return [share.sum_to_size(x.shape) for x in op.data]


def _linear(op: Operation, R: Tensor) -> list[Tensor]:
    def bind(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        return input, weight, bias

    x, weight, bias = bind(*op.args, **op.kwargs)
    if op.rules == "plain":
        return [relevance.linear_plain(R, x, weight)]
    return [relevance.linear(R, x, weight, bias, op.out)]


def _add(op: Operation, R: Tensor) -> list[Tensor]:
    """A residual; beside a number or a bias all goes to the data, beside a table of positions the data's side."""
    if any(not isinstance(term, Tensor) or term.ndim < 2 for term in op.args):
        return _pass_on(op, R)
    plain = op.rules == "plain"
    sides = relevance.residual_plain(R, op.args) if plain else relevance.residual(R, op.args, op.coupled)
    return [side.sum_to_size(x.shape) for x, side in zip(op.args, sides, strict=True) if op.tracks(x)]


def _product(op: Operation, R: Tensor) -> list[Tensor]:
    """x times the derivative, for what is linear in each of n tracked tensors; each gets an n-th."""
    s = relevance.divide(R, op.out)
    return [x * share / len(op.data) for x, share in zip(op.data, op.gradient(s), strict=True)]


def _sum(op: Operation, R: Tensor, terms: float = 1) -> list[Tensor]:
    """x_i q(R, sum of x); `terms`: what the sum was divided by."""
    (s,) = op.gradient(relevance.divide(R, op.out * terms))
    return [op.data[0] * s * terms]


def _mean(op: Operation, R: Tensor) -> list[Tensor]:
    return _sum(op, R, op.data[0].numel() / op.out.numel())


def _attention(op: Operation, R: Tensor) -> list[Tensor]:
    """Two matrix products with a softmax between; a learned query takes no part, the keys get its half."""

    def bind(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any,
        scale: float | None = None, **__: Any,
    ) -> Attention:  # fmt: skip
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        return Attention(0, query, key, value, scale, attn_mask, op.out)

    attention = bind(*op.args, **op.kwargs)
    q, k, v, weights = attention.q, attention.k, attention.v, attention.weights()
    R_weights = relevance.attention_matrix(R, op.out, weights, v)
    R_v = weights.transpose(-2, -1) @ relevance.divide(R, op.out) * v / 2
    R_q, R_k = relevance.factors(R_weights, q, k.transpose(-2, -1), share=0.5 if op.tracks(q) else 1.0)
    sides = ((q, R_q), (k, R_k.transpose(-2, -1)), (v, R_v))
    return [side for x, side in sides if op.tracks(x)]


def _patches(op: Operation, R: Tensor) -> list[Tensor]:
    images, weight, _, stride, *_ = op.args
    return [relevance.patch_pixels(R, images, weight, stride)]


SUMS = ("add", "__add__", "__radd__")
QUOTIENTS = ("div", "__truediv__")
LRP_RULES: dict[str, Rule] = {
    "linear": _linear,
    "scaled_dot_product_attention": _attention,
    "conv2d": _patches,
    "sum": _sum,
    "mean": _mean,
    **dict.fromkeys(SUMS, _add),
    **dict.fromkeys(("matmul", "__matmul__", "__rmatmul__", "bmm", "einsum"), _product),
    **dict.fromkeys(("mul", "__mul__", "__rmul__", *QUOTIENTS), _pass_on),
    **dict.fromkeys(("layer_norm", "rms_norm", "batch_norm", "softmax", "dropout"), _pass_on),
    **dict.fromkeys(("gelu", "silu", "relu", "tanh", "sigmoid"), _pass_on),
}
MOVES = {
    *("view", "reshape", "flatten", "unflatten", "transpose", "permute", "movedim", "T", "mT", "unsqueeze", "squeeze"),
    *("expand", "expand_as", "repeat", "contiguous", "clone", "detach", "float", "double", "to", "type_as", "pad"),
    *("__getitem__", "select", "narrow", "chunk", "split", "unbind", "cat", "stack", "index_select", "gather", "amax"),
}
"""Autograd's backward carries relevance as it is: each number goes back to where it came from (amax: the winner)."""


def is_tracked(x: Any) -> bool:
    """Whether relevance goes to x. Weights are frozen while a model is explained, so only data has a gradient."""
    return isinstance(x, Tensor) and x.requires_grad


def rule_for(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Rule | None:
    """The rule of the function `name`; None where there is none, or none for these arguments."""
    if name in SUMS and kwargs:  # a + alpha b
        return None
    if name in (*QUOTIENTS, "linear") and any(map(is_tracked, args[1:])):  # divided by data, weights made of data
        return None
    return LRP_RULES.get(name)
