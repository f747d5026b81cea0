"""Capture q, k, v and the output of every attention in a forward pass; the attention methods compute from these.

The calls of `scaled_dot_product_attention` are intercepted, so attention stays fused, no module names are needed, and
N x N matrices are formed only for the query rows that a method asks for. Of a block that computes its attention step by
step, the argument of the softmax is captured, with the product of the softmax and v:

    S = scale q kᵀ + mask      A = softmax(S)      O = A v
    dy/dA = dy/dO vᵀ           dy/dS = A * (dy/dA - rowsum(A * dy/dA))

Shape suffixes: B images, H heads, N tokens, R query rows (a slice of the N), D head width. q, k, v and O are BHND.
"""

import contextlib
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError
from explain.attention_calls import AttentionCalls, Weights, version
from explain.isolation import gradients

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
    explicit_scores: Tensor | None = None
    """S [B, H, N, N], of an attention that the model computes step by step; q, k, scale and mask are then unused."""
    mixed_weights: Tensor | None = None
    """A [B, H, N, N] with O = A v, if heads are mixed after the softmax: its rows can be negative, and have any sum."""

    @property
    def name(self) -> str:
        """For error messages."""
        return f"the attention of blocks.{self.block}"

    def scores(self, rows: slice = ALL) -> Tensor:
        """S [B, H, R, N] in fp32 (fp64 for an fp64 model), -inf where masked."""
        self.require_scores()
        if self.explicit_scores is not None:
            S_BHRN = self.explicit_scores[:, :, rows]
            return S_BHRN.to(torch.promote_types(S_BHRN.dtype, torch.float32))
        scores_BHRN = exact_product(self.q[:, :, rows], self.k, self.scale)
        mask = self._mask_rows(rows)
        if mask is None:
            return scores_BHRN
        return scores_BHRN.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores_BHRN + mask

    def weights(self, rows: slice = ALL) -> Tensor:
        """A [B, H, R, N]."""
        if self.mixed_weights is not None:
            A_BHRN = self.mixed_weights[:, :, rows]
            return A_BHRN.to(torch.promote_types(A_BHRN.dtype, torch.float32))
        return self.scores(rows).softmax(-1)

    def weights_gradient(self, rows: slice = ALL) -> Tensor:
        """dy/dA [B, H, R, N]."""
        if self.out_gradient is None:
            raise RuntimeError("call AttentionCapture.compute_gradients first")
        return exact_product(self.out_gradient[:, :, rows], self.v)

    def scores_gradient(self, rows: slice = ALL) -> Tensor:
        """dy/dS [B, H, R, N]; every row sums to 0."""
        self.require_scores()
        weights, gradient = self.weights(rows), self.weights_gradient(rows)
        return weights * (gradient - (weights * gradient).sum(-1, keepdim=True))

    def detached(self) -> "Attention":
        """The same attention with inputs that keep no graph."""
        names = ("q", "k", "v", "explicit_scores", "mixed_weights")
        tensors = {name: t.detach() for name in names if (t := getattr(self, name)) is not None}
        return replace(self, **tensors)

    def versions(self) -> list[int]:
        """Changes whenever one of the tensors is changed in place."""
        tensors = (self.q, self.k, self.v, self.mask, self.out, self.explicit_scores, self.mixed_weights)
        return [version(t) for t in tensors if t is not None]

    def select_rows(self, rows: slice) -> "Attention":
        """The same fused attention for the query rows `rows` only; its output is a new leaf of the autograd graph."""
        out = self.out[:, :, rows].detach().requires_grad_()
        return replace(self, q=self.q[:, :, rows], mask=self._mask_rows(rows), out=out)

    def require_scores(self) -> None:
        """Raise UserError if heads are mixed after the softmax."""
        if self.mixed_weights is not None:
            why = "mixes its heads after the softmax, so its weights are not those of scores"
            raise UserError(f"{self.name} {why}; choose grad_rollout or a method without attention")

    def _mask_rows(self, rows: slice) -> Tensor | None:
        if self.mask is None or self.mask.shape[-2] == 1:  # one row for all queries
            return self.mask
        return self.mask[..., rows, :]


def attention_from_call(
    block: int, out: Tensor, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Attention:  # fmt: skip
    """The Attention of `out = scaled_dot_product_attention(query, ...)`. Raises UserError if it cannot be rebuilt."""
    if is_causal or enable_gqa or dropout_p:
        why = "causal or grouped-query attention, or attention with dropout in eval mode, is not supported"
        raise UserError(f"blocks.{block}: {why}; choose a method without attention")
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
        """Set every `out_gradient` to d score / d O. No `.grad` is touched.

        Raises UserError naming a block on whose attention the score does not depend, as far as autograd knows.
        """
        outs = [attention.out for attention in self.attentions]
        found = gradients(score, outs, [attention.name for attention in self.attentions], create_graph=self.graph)
        self.gradient_stopped = False  # a later backward through the maps must reach q, k and v of earlier blocks
        for attention, gradient in zip(self.attentions, found, strict=True):
            attention.out_gradient = gradient


class _Recorder(AttentionCalls):
    """Adds every attention to the capture."""

    def __init__(self, capture: AttentionCapture, stop_gradient: bool, *where: Any) -> None:
        super().__init__(*where)
        self.capture, self.stop_gradient = capture, stop_gradient
        self.versions: list[list[int]] = []  # of the tensors of each attention when it ran

    def attend(self, func: Any, args: Any, kwargs: Any, weights: Weights | None) -> Tensor:
        out: Tensor = func(*args, **kwargs)
        keep_graph = self.capture.graph and out.requires_grad
        if keep_graph and self.stop_gradient:
            # detach() would cut the graph for good; this hook can be switched off once dy/dO is known.
            out.register_hook(lambda gradient: torch.zeros_like(gradient) if self.capture.gradient_stopped else None)
            out = out.view_as(out)  # dy/dO is taken at this view, which the hook does not affect
        elif torch.is_grad_enabled() and (self.stop_gradient or not out.requires_grad):
            out = out.detach().requires_grad_()  # with frozen weights the graph starts here
        assert self.index is not None
        if weights is None:
            attention = attention_from_call(self.index, out, *args, **kwargs)
        else:
            unused = torch.empty(0)
            mixed = args[0] if weights.S is None else None
            attention = Attention(self.index, unused, unused, args[1], 1.0, None, out, None, weights.S, mixed)
        for t, tokens in ((attention.v, self.keys), (out, self.queries))[: 1 if self.pooling else 2]:
            if t.ndim != 4 or (t.shape[0], t.shape[2]) != tokens:
                raise self.refuse(f"its attention has values {tuple(t.shape)} instead of one row for every token")
        self.capture.attentions.append(attention if keep_graph else attention.detached())
        self.versions.append(attention.versions())
        return out

    def finish(self) -> None:
        """Raise UserError if a captured tensor was changed in place after its attention ran."""
        for attention, versions in zip(self.capture.attentions, self.versions, strict=True):
            if attention.versions() != versions:
                raise self.refuse("it changes what its attention read or returned in place", attention.block)


@contextlib.contextmanager
def record(
    blocks: Sequence[nn.Module], layers: Container[int] | None = None, stop_gradient: bool = False,
    graph: bool = False, pooling: bool = False,
) -> Iterator[AttentionCapture]:  # fmt: skip
    """Capture the attentions of `blocks`, all blocks of a ViT, inside this context, in one forward pass.

    `layers`: indices of the blocks to capture; None: all. `stop_gradient`: no gradient passes through an attention; it
    flows along the residual stream and the MLPs only, as AGCAM needs. `graph`: see `AttentionCapture.graph`; maps
    computed from the capture are then differentiable through the attentions too. `pooling`: `blocks` is one
    attention pooling, whose queries are not the tokens.

    Use it inside `explainable`, which turns fused attention on. All hooks are removed, also after an exception. Raises
    UserError naming the block if not exactly one attention (one per parallel branch) is found in each captured block.
    """
    capture = AttentionCapture(graph=graph)
    layers = range(len(blocks)) if layers is None else layers
    with _Recorder(capture, stop_gradient, blocks, layers, pooling).watching():
        yield capture


class _AttentionReplay(AttentionCalls):
    """Returns captured outputs, in order, instead of computing attention."""

    def __init__(self, capture: AttentionCapture, blocks: Sequence[nn.Module]) -> None:
        super().__init__(blocks, range(len(blocks)))
        self.outs = iter([attention.out for attention in capture.attentions])

    def attend(self, func: Any, args: Any, kwargs: Any, weights: Weights | None) -> Tensor:
        return next(self.outs)


@contextlib.contextmanager
def replay(blocks: Sequence[nn.Module], capture: AttentionCapture, rows: slice) -> Iterator[AttentionCapture]:
    """Inside, a forward pass computes only the tokens `rows`, from the first block on; yields the capture of these.

    `capture`: all attentions of the model on the same images, all fused. Attention is not recomputed: each returns its
    captured output for these rows as a leaf, which gives the graph of `record(stop_gradient=True)` restricted to
    `rows`. The logits are unchanged if the classifier reads no other tokens. Rotary positions are left out: they are
    those of all tokens, and only act on attention.
    """
    selected = AttentionCapture([attention.select_rows(rows) for attention in capture.attentions])

    def without_rope(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "rope": None} if "rope" in kwargs else kwargs

    with contextlib.ExitStack() as stack:
        for block in dict.fromkeys(blocks):
            stack.enter_context(block.register_forward_pre_hook(without_rope, with_kwargs=True))
        stack.enter_context(blocks[0].register_forward_pre_hook(lambda _, args: (args[0][:, rows], *args[1:])))
        stack.enter_context(_AttentionReplay(selected, blocks).watching())
        yield selected


def exact_product(a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
    """scale a bᵀ in fp32 (fp64 for fp64 tensors), also under autocast."""
    dtype = torch.promote_types(a.dtype, torch.float32)
    with torch.autocast(a.device.type, enabled=False):
        product: Tensor = (a.to(dtype) * scale) @ b.to(dtype).transpose(-2, -1)
        return product
