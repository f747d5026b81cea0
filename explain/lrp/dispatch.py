"""Which rule of explain/lrp/rules.py applies to which torch function.

A rule gets an operation with its arguments and output, and the relevance R of the output; it returns the relevance of
each tracked input (data, not weights).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from explain.attention_capture import attention_from_call
from explain.lrp import rules as relevance

RuleSet = Literal["ours", "plain"]


@dataclass(frozen=True)
class Operation:
    """One call of a torch function, whose tracked arguments are leaves of an autograd graph of its own."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    data: tuple[Tensor, ...]
    """The tracked tensors among the arguments."""
    out: Tensor
    rules: RuleSet
    published: bool
    """Residual sums over the whole batch."""

    def tracks(self, argument: Tensor) -> bool:
        """Whether relevance goes to `argument`."""
        return any(argument is tracked for tracked in self.data)

    def gradient(self, of_out: Tensor) -> tuple[Tensor, ...]:
        """Vector-Jacobian product: the gradient of each of `data`, given that of the output."""
        return torch.autograd.grad(self.out, self.data, of_out, retain_graph=True)


Rule = Callable[[Operation, Tensor], Sequence[Tensor]]
"""(operation, relevance of its output) -> relevance of each of its `data`."""


def _pass_on(op: Operation, R: Tensor) -> list[Tensor]:
    """Norms, activations, softmax, scaling: all of R; a product of n tracked tensors gives R / n to each."""
    part = R if len(op.data) == 1 else R / len(op.data)
    return [part.sum_to_size(x.shape) for x in op.data]


def _linear(op: Operation, R: Tensor) -> list[Tensor]:
    def bind(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        return input, weight, bias

    x, weight, bias = bind(*op.args, **op.kwargs)
    if op.rules == "plain":
        return [relevance.linear_plain(R, x, weight)]
    return [relevance.linear(R, x, weight, bias, op.out)]


def _add(op: Operation, R: Tensor) -> list[Tensor]:
    """A residual connection. If one side is a number or a bias vector, all relevance goes to the other.

    Position embeddings count as a branch, but only the data's side is returned.
    """
    if any(not isinstance(term, Tensor) or term.ndim < 2 for term in op.args):
        return _pass_on(op, R)
    plain = op.rules == "plain"
    sides = relevance.residual_plain(R, op.args) if plain else relevance.residual(R, op.args, op.published)
    return [side.sum_to_size(x.shape) for x, side in zip(op.args, sides, strict=True) if op.tracks(x)]


def _product(op: Operation, R: Tensor) -> list[Tensor]:
    """Functions that are linear in each of n tracked tensors: x times the gradient for q(R, out), divided by n."""
    s = relevance.divide(R, op.out)
    return [x * gradient / len(op.data) for x, gradient in zip(op.data, op.gradient(s), strict=True)]


def _sum(op: Operation, R: Tensor, terms: float = 1) -> list[Tensor]:
    """x_i q(R, sum of x). `terms`: what the output was divided by, 1 for a sum."""
    (s,) = op.gradient(relevance.divide(R, op.out * terms))
    return [op.data[0] * s * terms]


def _mean(op: Operation, R: Tensor) -> list[Tensor]:
    return _sum(op, R, op.data[0].numel() / op.out.numel())


def _attention(op: Operation, R: Tensor) -> list[Tensor]:
    """Two matrix products: A v, whose halves go to A and v, and q kᵀ, whose halves of A's relevance go to q and k.

    The softmax between them passes relevance on. A learned query is not tracked; the keys then get its half too.
    """
    attention = attention_from_call(0, op.out, *op.args, **op.kwargs)
    q, k, v, weights = attention.q, attention.k, attention.v, attention.weights()
    R_weights = relevance.attention_matrix(R, op.out, weights, v)
    R_v = weights.transpose(-2, -1) @ relevance.divide(R, op.out) * v / 2
    R_q, R_k = relevance.factors(R_weights, q, k.transpose(-2, -1), fraction=0.5 if op.tracks(q) else 1.0)
    sides = ((q, R_q), (k, R_k.transpose(-2, -1)), (v, R_v))
    return [side for x, side in sides if op.tracks(x)]


def _patches(op: Operation, R: Tensor) -> list[Tensor]:
    images, weight, _, stride, *_ = op.args
    return [relevance.patch_pixels(R, images, weight, stride)]


ADDITIONS = ("add", "__add__", "__radd__")
DIVISIONS = ("div", "__truediv__")
RULES: dict[str, Rule] = {
    "linear": _linear,
    "scaled_dot_product_attention": _attention,
    "conv2d": _patches,
    "sum": _sum,
    "mean": _mean,
    **dict.fromkeys(ADDITIONS, _add),
    **dict.fromkeys(("matmul", "__matmul__", "__rmatmul__", "bmm", "einsum"), _product),
    **dict.fromkeys(("mul", "__mul__", "__rmul__", *DIVISIONS), _pass_on),
    **dict.fromkeys(("layer_norm", "rms_norm", "batch_norm", "normalize", "softmax", "dropout"), _pass_on),
    **dict.fromkeys(("gelu", "silu", "relu", "tanh", "sigmoid"), _pass_on),
}
DATA_MOVEMENT = {
    *("view", "reshape", "flatten", "unflatten", "transpose", "permute", "movedim", "T", "mT", "unsqueeze", "squeeze"),
    *("expand", "expand_as", "repeat", "contiguous", "clone", "detach", "float", "double", "to", "type_as", "pad"),
    *("__getitem__", "select", "narrow", "chunk", "split", "unbind", "cat", "stack", "index_select", "gather", "amax"),
}
"""Functions whose ordinary backward returns each number to where it came from (amax: to the maximum), as LRP needs."""


def is_tracked(x: Any) -> bool:
    """Whether relevance goes to x. Weights are frozen while a model is explained, so only data requires a gradient."""
    return isinstance(x, Tensor) and x.requires_grad


def rule_for(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Rule | None:
    """The rule of the function `name`; None if there is none, or none for these arguments."""
    if name in ADDITIONS and kwargs:  # a + alpha b
        return None
    if name in (*DIVISIONS, "linear") and any(map(is_tracked, args[1:])):  # divided by data, or weights made of data
        return None
    return RULES.get(name)
