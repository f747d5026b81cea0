"""What a forward pass leaves behind for the explanation methods: every attention's q, k, v and output.

Attention is caught where it happens, at `scaled_dot_product_attention`, so it stays fused, needs no module of a known
name, and the N x N matrices exist only for the rows that a method asks for. They are rebuilt exactly:

    S = q kT scale + mask      A = softmax(S)      G = dy/dA = dy/dO vT      E = dy/dS = A (G - sum_m A G)

Shape legend: B images, H heads, N tokens, R rows asked for, E head width; O [B, H, N, E] is an attention's output.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

ALL = slice(None)


@dataclass
class Attention:
    """One attention of one block, as it was computed."""

    block: int
    """Index of the block among those recorded."""
    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    mask: Tensor | None
    """What was added to the scores, or (bool) where they count; broadcasts to [B, H, N, N]."""
    out: Tensor
    """[B, H, N, E]."""
    out_gradient: Tensor | None = None
    """dy/dO, same shape; set by `AttentionCapture.gradients`."""

    def scores(self, rows: slice = ALL) -> Tensor:
        """S [B, H, R, N] fp32 (fp64 for an fp64 model), -inf where masked."""
        scores = exact_product(self.q[:, :, rows], self.k, self.scale)
        if self.mask is None:
            return scores
        mask = self.mask[..., rows, :] if self.mask.shape[-2] > 1 else self.mask
        return scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask

    def weights(self, rows: slice = ALL) -> Tensor:
        """A [B, H, R, N]."""
        return self.scores(rows).softmax(-1)

    def weights_gradient(self, rows: slice = ALL) -> Tensor:
        """G = dy/dA [B, H, R, N]."""
        if self.out_gradient is None:
            raise RuntimeError("call AttentionCapture.gradients first")
        return exact_product(self.out_gradient[:, :, rows], self.v)

    def scores_gradient(self, rows: slice = ALL) -> Tensor:
        """E = dy/dS [B, H, R, N]; every row sums to 0."""
        weights, gradient = self.weights(rows), self.weights_gradient(rows)
        return weights * (gradient - (weights * gradient).sum(-1, keepdim=True))

    def leaf(self, rows: slice) -> "Attention":
        """The same for the queries `rows` alone; what they got is a leaf of a graph."""
        mask = self.mask if self.mask is None or self.mask.shape[-2] == 1 else self.mask[..., rows, :]
        return replace(self, q=self.q[:, :, rows], mask=mask, out=self.out[:, :, rows].detach().requires_grad_())


@dataclass
class AttentionCapture:
    """The attentions of one forward pass, first block first."""

    attentions: list[Attention] = field(default_factory=list)
    graph: bool = False
    """Whether q, k, v and the gradients keep their graph, to be differentiated in turn."""
    blocked: bool = True
    """Whether attentions that were cut with their graph kept still let no gradient pass."""

    def by_block(self) -> list[list[Attention]]:
        """Attentions grouped by block: one each, or several where a block has parallel branches."""
        blocks: dict[int, list[Attention]] = {}
        for attention in self.attentions:
            blocks.setdefault(attention.block, []).append(attention)
        return list(blocks.values())

    def gradients(self, score: Tensor) -> None:
        """Fill every `out_gradient` with d score / d O. Weights get no gradient, the caller's ones stay as they are."""
        outs = [attention.out for attention in self.attentions]
        gradients = torch.autograd.grad(score, outs, materialize_grads=True, create_graph=self.graph)
        self.blocked = False
        for attention, gradient in zip(self.attentions, gradients, strict=True):
            attention.out_gradient = gradient


class _Recorder(TorchFunctionMode):
    """Notes every fused attention that runs inside a block; `cut` makes its output a leaf of the graph."""

    def __init__(self, capture: AttentionCapture, cut: bool) -> None:
        super().__init__()
        self.capture, self.cut = capture, cut
        self.block: int | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        result = func(*args, **(kwargs or {}))
        if func is not F.scaled_dot_product_attention or self.block is None:
            return result
        q, k, v, mask, _, _, scale = _bind(*args, **(kwargs or {}))
        graph = self.capture.graph and result.requires_grad
        if graph and self.cut:
            result.register_hook(lambda gradient: torch.zeros_like(gradient) if self.capture.blocked else None)
            result = result.view_as(result)
        elif torch.is_grad_enabled() and (self.cut or not result.requires_grad):
            result = result.detach().requires_grad_()  # frozen weights: the graph starts here
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        read = (q, k, v) if graph else (q.detach(), k.detach(), v.detach())
        self.capture.attentions.append(Attention(self.block, *read, scale, mask, result))
        return result


def _bind(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, float, bool, float | None]:  # fmt: skip
    return query, key, value, attn_mask, dropout_p, is_causal, scale


@contextlib.contextmanager
def record(blocks: Iterable[nn.Module], cut: bool = False, graph: bool = False) -> Iterator[AttentionCapture]:
    """Everything that the attentions of `blocks` (some or all of a ViT's) do inside this context.

    `cut`: no gradient passes through an attention; each output is a leaf, so that gradients flow along the residual
    stream and the MLPs alone (AGCAM). `graph`: see `AttentionCapture.graph`. Gradients of what is computed from the
    capture pass through attentions that were cut. Must be used inside `explainable`, which turns fused attention on. No
    hook is left, also after an exception.
    """
    capture = AttentionCapture(graph=graph)
    recorder = _Recorder(capture, cut)

    def enter(index: int) -> Callable[..., None]:
        def note(*_: Any) -> None:
            recorder.block = index

        return note

    def leave(*_: Any) -> None:
        recorder.block = None

    with contextlib.ExitStack() as hooks:
        for index, block in enumerate(blocks):
            hooks.callback(block.register_forward_pre_hook(enter(index)).remove)
            hooks.callback(block.register_forward_hook(leave).remove)
        with recorder:
            yield capture


class _AttentionReplay(TorchFunctionMode):
    """Answers every fused attention with what the capture has of it, in the capture's order."""

    def __init__(self, capture: AttentionCapture) -> None:
        super().__init__()
        self.outs = iter([attention.out for attention in capture.attentions])

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        return next(self.outs) if func is F.scaled_dot_product_attention else func(*args, **(kwargs or {}))


@contextlib.contextmanager
def replay(blocks: Sequence[nn.Module], capture: AttentionCapture, rows: slice) -> Iterator[AttentionCapture]:
    """Inside, a forward pass carries the tokens `rows` alone from the first block on; yields the capture of these rows.

    `capture`: all attentions of the model on the same images. Each gives the rows what it gave them then, as a leaf,
    which is the graph of `record(cut=True)` without the tokens that no gradient reaches. The logits are the same where
    the classifier reads no other tokens.
    """
    of_rows = AttentionCapture([attention.leaf(rows) for attention in capture.attentions])
    take = blocks[0].register_forward_pre_hook(lambda _, args: (args[0][:, rows], *args[1:]))
    with take, _AttentionReplay(of_rows):
        yield of_rows


def exact_product(a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
    """(scale a) bT in fp32 (fp64 for fp64 tensors), also under autocast."""
    dtype = torch.promote_types(a.dtype, torch.float32)
    with torch.autocast(a.device.type, enabled=False):
        return (a.to(dtype) * scale) @ b.to(dtype).transpose(-2, -1)
