"""Capture q, k, v and the output of every attention in a forward pass; the attention methods compute from these.

The calls of `scaled_dot_product_attention` are intercepted, so attention stays fused, no module names are needed, and
N x N matrices are formed only for the query rows that a method asks for:

    S = scale q kᵀ + mask      A = softmax(S)      O = A v
    dy/dA = dy/dO vᵀ           dy/dS = A * (dy/dA - rowsum(A * dy/dA))

Shape suffixes: B images, H heads, N tokens, R query rows (a slice of the N), D head width. q, k, v and O are BHND.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from common.errors import UserError

ALL = slice(None)


@dataclass
class Attention:
    """One call of scaled dot-product attention."""

    block: int
    """Index of the block it ran in, among the recorded blocks."""
    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    mask: Tensor | None
    """Added to the scores, or (bool) True where a key is visible; broadcasts to [B, H, N, N]."""
    out: Tensor
    """O [B, H, N, D]."""
    out_gradient: Tensor | None = None
    """dy/dO [B, H, N, D]; set by `AttentionCapture.compute_gradients`."""

    def scores(self, rows: slice = ALL) -> Tensor:
        """S [B, H, R, N] in fp32 (fp64 for an fp64 model), -inf where masked."""
        scores_BHRN = exact_product(self.q[:, :, rows], self.k, self.scale)
        mask = self._mask_rows(rows)
        if mask is None:
            return scores_BHRN
        return scores_BHRN.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores_BHRN + mask

    def weights(self, rows: slice = ALL) -> Tensor:
        """A [B, H, R, N]."""
        return self.scores(rows).softmax(-1)

    def weights_gradient(self, rows: slice = ALL) -> Tensor:
        """dy/dA [B, H, R, N]."""
        if self.out_gradient is None:
            raise RuntimeError("call AttentionCapture.compute_gradients first")
        return exact_product(self.out_gradient[:, :, rows], self.v)

    def scores_gradient(self, rows: slice = ALL) -> Tensor:
        """dy/dS [B, H, R, N]; every row sums to 0."""
        weights, gradient = self.weights(rows), self.weights_gradient(rows)
        return weights * (gradient - (weights * gradient).sum(-1, keepdim=True))

    def select_rows(self, rows: slice) -> "Attention":
        """The same attention for the query rows `rows` only; its output is a new leaf of the autograd graph."""
        out = self.out[:, :, rows].detach().requires_grad_()
        return replace(self, q=self.q[:, :, rows], mask=self._mask_rows(rows), out=out)

    def _mask_rows(self, rows: slice) -> Tensor | None:
        if self.mask is None or self.mask.shape[-2] == 1:  # one row for all queries
            return self.mask
        return self.mask[..., rows, :]


def attention_from_call(
    block: int, out: Tensor, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Attention:  # fmt: skip
    """The Attention of `out = scaled_dot_product_attention(query, ...)`. Raises UserError if it cannot be rebuilt."""
    if is_causal or enable_gqa:
        raise UserError("--method: causal or grouped-query attention is not supported; choose a method at pixels")
    return Attention(block, query, key, value, query.shape[-1] ** -0.5 if scale is None else scale, attn_mask, out)


@dataclass
class AttentionCapture:
    """The attentions of one forward pass, first block first."""

    attentions: list[Attention] = field(default_factory=list)
    graph: bool = False
    """Whether q, k, v and the gradients keep their autograd graph, for maps that are differentiated."""
    gradient_stopped: bool = True
    """With `graph` and `stop_gradient`: whether attention outputs still block gradients."""

    def by_block(self) -> list[list[Attention]]:
        """Attentions grouped by block: one each, or several if a block has parallel branches."""
        blocks: dict[int, list[Attention]] = {}
        for attention in self.attentions:
            blocks.setdefault(attention.block, []).append(attention)
        return list(blocks.values())

    def compute_gradients(self, score: Tensor) -> None:
        """Set every `out_gradient` to d score / d O. No `.grad` is touched."""
        outs = [attention.out for attention in self.attentions]
        gradients = torch.autograd.grad(score, outs, materialize_grads=True, create_graph=self.graph)
        self.gradient_stopped = False  # a later backward through the maps must reach q, k and v of earlier blocks
        for attention, gradient in zip(self.attentions, gradients, strict=True):
            attention.out_gradient = gradient


class _Recorder(TorchFunctionMode):
    """Adds every attention that runs while `block` is set to the capture."""

    def __init__(self, capture: AttentionCapture, stop_gradient: bool) -> None:
        super().__init__()
        self.capture, self.stop_gradient = capture, stop_gradient
        self.block: int | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func is not F.scaled_dot_product_attention or self.block is None:
            return out
        keep_graph = self.capture.graph and out.requires_grad
        if keep_graph and self.stop_gradient:
            # detach() would cut the graph for good; this hook can be switched off once dy/dO is known.
            out.register_hook(lambda gradient: torch.zeros_like(gradient) if self.capture.gradient_stopped else None)
            out = out.view_as(out)  # dy/dO is taken at this view, which the hook does not affect
        elif torch.is_grad_enabled() and (self.stop_gradient or not out.requires_grad):
            out = out.detach().requires_grad_()  # with frozen weights the graph starts here
        attention = attention_from_call(self.block, out, *args, **kwargs)
        if not keep_graph:
            attention.q, attention.k, attention.v = (t.detach() for t in (attention.q, attention.k, attention.v))
        self.capture.attentions.append(attention)
        return out


@contextlib.contextmanager
def record(blocks: Iterable[nn.Module], stop_gradient: bool = False, graph: bool = False) -> Iterator[AttentionCapture]:
    """Capture the attentions of `blocks` (some or all blocks of a ViT) inside this context.

    `stop_gradient`: no gradient passes through an attention; it flows along the residual stream and the MLPs only, as
    AGCAM needs. `graph`: see `AttentionCapture.graph`; maps computed from the capture are then differentiable through
    the attentions too. Use it inside `explainable`, which turns fused attention on. All hooks are removed, also after
    an exception.
    """
    capture = AttentionCapture(graph=graph)
    recorder = _Recorder(capture, stop_gradient)

    def set_block(index: int | None) -> Callable[..., None]:
        return lambda *_: setattr(recorder, "block", index)

    with contextlib.ExitStack() as stack:
        for index, block in enumerate(blocks):
            stack.enter_context(block.register_forward_pre_hook(set_block(index)))
            stack.enter_context(block.register_forward_hook(set_block(None)))  # pooling attention is not recorded
        stack.enter_context(recorder)
        yield capture


class _AttentionReplay(TorchFunctionMode):
    """Returns captured outputs, in order, instead of computing attention."""

    def __init__(self, capture: AttentionCapture) -> None:
        super().__init__()
        self.outs = iter([attention.out for attention in capture.attentions])

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return next(self.outs) if func is F.scaled_dot_product_attention else func(*args, **(kwargs or {}))


@contextlib.contextmanager
def replay(blocks: Sequence[nn.Module], capture: AttentionCapture, rows: slice) -> Iterator[AttentionCapture]:
    """Inside, a forward pass computes only the tokens `rows`, from the first block on; yields the capture of these.

    `capture`: all attentions of the model on the same images. Attention is not recomputed: each returns its captured
    output for these rows as a leaf, which gives the graph of `record(stop_gradient=True)` restricted to `rows`. The
    logits are unchanged if the classifier reads no other tokens.
    """
    selected = AttentionCapture([attention.select_rows(rows) for attention in capture.attentions])
    keep_rows = blocks[0].register_forward_pre_hook(lambda _, args: (args[0][:, rows], *args[1:]))
    with keep_rows, _AttentionReplay(selected):
        yield selected


def exact_product(a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
    """scale a bᵀ in fp32 (fp64 for fp64 tensors), also under autocast."""
    dtype = torch.promote_types(a.dtype, torch.float32)
    with torch.autocast(a.device.type, enabled=False):
        product: Tensor = (a.to(dtype) * scale) @ b.to(dtype).transpose(-2, -1)
        return product
