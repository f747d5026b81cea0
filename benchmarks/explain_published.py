"""The published ways of explaining and of scoring maps, re-created from their mathematics.

They share a way of working: one image at a time, attention spelled out so that hooks on its modules can catch it, whole
N x N matrices, `backward()` into every weight. Left out is what is an accident of their code: the models they carry
with them, hooks that pile up from call to call, graphs that live on.

Each method is (model of `explicit`, image [1, 3, H, W]) -> map [h, w] of the predicted class.
Shape legend: H heads, N tokens (class token first), E head width.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from common.errors import UserError
from models.masked_attention import is_plain

DISCARD = 0.9
STEPS = 10


class ExplicitAttention(nn.Module):
    """timm's attention, unfused; `scores` and `weights` are the places where hooks catch S and A [1, H, N, N]."""

    def __init__(self, attn: Any, cut: bool) -> None:
        """`cut`: reads detached tokens (AGCAM)."""
        super().__init__()
        self.qkv, self.proj, self.num_heads, self.scale = attn.qkv, attn.proj, attn.num_heads, attn.scale
        self.scores, self.weights = nn.Identity(), nn.Identity()
        self.cut = cut

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        """[1, N, D] -> [1, N, D]."""
        q, k, v = self.qkv(x.detach() if self.cut else x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        weights = self.weights(self.scores(q @ k.mT * self.scale).softmax(-1))
        return cast(Tensor, self.proj((weights @ v).transpose(1, 2).flatten(2)))


def explicit(vit: VisionTransformer, cut: bool = False) -> VisionTransformer:
    """A copy of the model with explicit attention. Raises UserError for a ViT that published code could not explain."""
    rows, columns = vit.patch_embed.grid_size
    first: Any = vit.blocks[0]
    bare = is_plain(vit) and isinstance(first.attn.q_norm, nn.Identity) and first.attn.gate is None
    if not bare or vit.num_prefix_tokens != 1 or vit.global_pool != "token" or rows != columns:
        raise UserError(
            "--models: published code explains plain ViTs alone: plain blocks, a class token, square images"
        )
    vit = copy.deepcopy(vit)
    for block in vit.blocks:
        block.attn = ExplicitAttention(block.attn, cut)
    return vit


@contextmanager
def hooked(modules: Sequence[nn.Module], hook: Callable[..., None]) -> Iterator[None]:
    """`hook(module, inputs, output)` after every forward of the modules."""
    handles = [module.register_forward_hook(hook) for module in modules]
    yield
    for handle in handles:
        handle.remove()


def attentions(vit: VisionTransformer) -> list[Any]:
    """First block first."""
    return [block.attn for block in vit.blocks]


def backward(vit: VisionTransformer, image: Tensor) -> Tensor:
    """Forward, and the predicted class's gradient into every weight, as `model.zero_grad()` and `backward()` leave it.

    Returns the one-hot row [1, C] of that class.
    """
    vit.zero_grad()
    logits = vit(image)
    one_hot = torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1)
    (one_hot * logits).sum().backward()
    return one_hot


def on_grid(row: Tensor) -> Tensor:
    """[patches] -> square."""
    side = int(len(row) ** 0.5)
    return row.view(side, side)


def rollout(vit: VisionTransformer, image: Tensor) -> Tensor:
    """vit-explain: mean over heads, 90 % discarded, N x N products on the CPU."""
    kept: list[Tensor] = []
    with torch.no_grad(), hooked([a.weights for a in attentions(vit)], lambda *call: kept.append(call[-1].cpu())):
        vit(image)
    return _chain([A[0].mean(0) for A in kept], keep_first=True)


def grad_rollout(vit: VisionTransformer, image: Tensor) -> Tensor:
    """vit-explain: A times dy/dS, the first block's A meeting the last one's gradient."""
    kept: list[Tensor] = []
    gradients: list[Tensor] = []

    def keep(_: nn.Module, __: Any, A: Tensor) -> None:
        kept.append(A.cpu())
        assert A.grad_fn is not None
        A.grad_fn.register_hook(lambda into, _: gradients.append(into[0].cpu()))  # of the softmax: its input's gradient

    with hooked([a.weights for a in attentions(vit)], keep):
        backward(vit, image)
    pairs = zip(kept, gradients, strict=True)
    return _chain([(A[0] * E[0]).mean(0).clamp(min=0).detach() for A, E in pairs], keep_first=False)


def _chain(fused: Sequence[Tensor], keep_first: bool) -> Tensor:
    eye = torch.eye(len(fused[0])).to(fused[0])
    result = eye
    for F in fused:
        flat = F.flatten()
        smallest = flat.topk(int(len(flat) * DISCARD), largest=False).indices
        flat[smallest[smallest != 0] if keep_first else smallest] = 0
        M = (flat.view_as(F) + eye) / 2
        result = (M / M.sum(-1)) @ result  # row sums divide columns
    row = result[0, 1:]
    return on_grid(row / row.max())


def agcam(vit: VisionTransformer, image: Tensor) -> Tensor:
    """AGCAM with hooks before the softmax and behind the dropout; the model is `explicit(..., cut=True)`."""
    scores: list[Tensor] = []
    gradients: list[Tensor] = []
    handles = [
        attention.weights.register_full_backward_hook(lambda _, __, outer: gradients.append(outer[0]))
        for attention in attentions(vit)
    ]
    with hooked([a.scores for a in attentions(vit)], lambda *call: scores.append(call[-1].detach())):
        backward(vit, image)
    for handle in handles:
        handle.remove()
    S, G = torch.cat(scores[::-1])[:, :, 0, 1:], torch.cat(gradients)[:, :, 0, 1:]
    return on_grid((G.relu() * S.sigmoid()).sum((0, 1)))


def gradcam(vit: VisionTransformer, image: Tensor) -> Tensor:
    """The Grad-CAM that the relevance paper compares with: the last block's attention, before ReLU and stretching."""
    kept: list[Tensor] = []

    def keep(_: nn.Module, __: Any, A: Tensor) -> None:
        A.retain_grad()
        kept.append(A)

    with hooked([a.weights for a in attentions(vit)], keep):
        backward(vit, image)
    assert kept[-1].grad is not None
    A, G = kept[-1].detach()[0, :, 0, 1:], kept[-1].grad[0, :, 0, 1:]
    return on_grid((A * G.mean(1, keepdim=True)).mean(0))


def abpc(vit: VisionTransformer, image: Tensor, heat: Tensor, label: Tensor) -> Tensor:
    """ABPC of one image [1, 3, H, W] and its map [H, W] in [0, 1]: 22 forwards of one image, gradients on; [].

    A pixel is removed by a product with 0, which is grey where images are normalised by 0.5 and 0.5.
    """
    areas = []
    for order in (-heat - 1, heat + 1):
        probabilities = []
        for step in range(STEPS + 1):
            count = heat.numel() * step // STEPS
            keep = torch.ones_like(heat).flatten()
            keep[order.flatten().topk(count).indices] = 0
            probabilities.append(vit(image * keep.view_as(heat)).softmax(-1)[0, label].detach())
        areas.append(torch.stack(probabilities).mean())
    return areas[0] - areas[1]
