"""Maps of attention methods from attention that the model computes step by step, for any of timm's ViTs.

The model runs with fused attention off. Every softmax over scores S and the product A v that follows it are recorded,
and autograd gives dy/dA: no formula, and nothing that `explain` knows of the model, is used for what a row or a
gradient is. Which tokens the classifier reads is found from the gradient of the tokens after the last block.

Shape legend: L blocks, H heads, T tokens (prefix tokens first), Q queries, K keys, N patches.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

ATTENTION_METHODS = ("raw_attention", "rollout", "grad_rollout", "agcam")
PRODUCTS = (torch.Tensor.__matmul__, torch.Tensor.matmul, torch.matmul)


class Block(NamedTuple):
    """The attention of one block."""

    S: Tensor
    """[H, Q, K]; of CaiT, before the heads are mixed."""
    A: Tensor
    """[H, Q, K]: what the values are multiplied with."""
    G: Tensor
    """dy/dA [H, Q, K]."""


class _Attentions(TorchFunctionMode):
    """Records the scores and the weights of every attention while `active`."""

    def __init__(self) -> None:
        super().__init__()
        self.active = True
        self.scores: Tensor | None = None
        self.found: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self.active and func is torch.Tensor.softmax and out.ndim == 4:
            self.scores = args[0]
        elif self.scores is not None and func in PRODUCTS and args[0].ndim == 4:
            self.found.append((self.scores, args[0]))
            self.scores = None
        return out


def textbook_maps(model: Any, image: Tensor, methods: Sequence[str]) -> dict[str, Tensor]:
    """The maps [N] of the predicted class of `image` [1, 3, H, W], of those of ATTENTION_METHODS that are asked for."""
    blocks, read = attentions(model, image)
    tokens = max(block.A.shape[-1] for block in blocks)
    prefix = model.num_prefix_tokens
    identity = torch.eye(tokens, dtype=image.dtype)

    def rolled(matrices: Iterable[Tensor]) -> Tensor:
        product = identity
        for F in matrices:
            M = full(F, tokens) + identity
            product = (M / M.sum(-1, keepdim=True)) @ product
        return product[read].mean(0)[prefix:]

    maps: dict[str, Tensor] = {}
    if "raw_attention" in methods:
        maps["raw_attention"] = blocks[-1].A.mean(0)[read].mean(0)[prefix:]
    if "rollout" in methods:
        maps["rollout"] = rolled(block.A.mean(0) for block in blocks)
    if "grad_rollout" in methods:
        added = rolled((block.A * block.G).mean(0).clamp_min(0) for block in blocks)
        maps["grad_rollout"] = added - identity[read].mean(0)[prefix:]
    if "agcam" in methods:
        cut, _ = attentions(model, image, cut=True)
        gated = [(block.G.clamp_min(0) * block.S.sigmoid()).sum(0) for block in cut if block.A.shape[-1] == tokens]
        maps["agcam"] = torch.stack([rows[read].mean(0)[prefix:] for rows in gated]).sum(0)
    return maps


def full(F: Tensor, tokens: int) -> Tensor:
    """[Q, K] -> [T, T]. CaiT's patches attend to patches alone, and its class token alone attends to all tokens."""
    whole = F.new_zeros(tokens, tokens)
    first = tokens - F.shape[1]
    whole[first : first + F.shape[0], first:] = F
    return whole


def attentions(model: Any, image: Tensor, cut: bool = False) -> tuple[list[Block], list[int]]:
    """All blocks, and the indices of the tokens that the classifier reads. `cut`: attention reads detached tokens."""
    blocks = [*model.blocks, *(getattr(model, "blocks_token_only", None) or ())]
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_unfused(model))
        after = []
        stack.enter_context(blocks[-1].register_forward_hook(lambda _, __, out: after.append(out)))
        if cut:
            for block in blocks:
                stack.enter_context(block.attn.register_forward_pre_hook(lambda _, args: (args[0].detach(), *args[1:])))
        mode = stack.enter_context(_Attentions())
        if (pool := getattr(model, "attn_pool", None)) is not None:  # comes after the blocks
            stack.enter_context(pool.register_forward_pre_hook(lambda *_: setattr(mode, "active", False)))
        logits = model(image)[0]
    score = logits[int(logits.argmax())]
    tensors = [A for _, A in mode.found]
    gradients = torch.autograd.grad(score, [*tensors, after[-1]], allow_unused=True)
    found = [
        Block(S[0].detach(), A[0].detach(), torch.zeros_like(A[0]) if G is None else G[0])
        for (S, A), G in zip(mode.found, gradients[:-1], strict=True)
    ]
    assert len(found) == len(blocks), f"{len(found)} attentions in {len(blocks)} blocks"
    return found, gradients[-1][0].abs().sum(-1).nonzero().flatten().tolist()


@contextlib.contextmanager
def _unfused(model: nn.Module) -> Iterator[None]:
    parts: list[Any] = [part for part in model.modules() if hasattr(part, "fused_attn")]
    before = [part.fused_attn for part in parts]
    for part in parts:
        part.fused_attn = False
    try:
        yield
    finally:
        for part, value in zip(parts, before, strict=True):
            part.fused_attn = value
