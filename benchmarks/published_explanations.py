"""Explanation methods and ABPC as the published code computes them, written from their formulas.

All work in the same way: one image at a time, unfused attention that hooks can read, full N x N matrices, `backward()`
into every weight. Not reproduced: the models of their own, hooks that accumulate from call to call, graphs that are
never freed.

Each method is (model of `explicit`, image [1, 3, H, W]) -> map [h, w] of the predicted class.
Shape legend: H heads, N tokens (class token first), E head width, D model width.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from common.errors import UserError
from models.transformer import describe

DISCARD = 0.9
"""Fraction of each fused attention matrix that vit-explain sets to 0."""
ABPC_STEPS = 10
LRP_START = 1
"""First block of the LRP product, as in the paper's experiments."""
EPSILON = 1e-9


class ExplicitAttention(nn.Module):
    """timm's attention, unfused; hooks on `scores` and `weights` read S and A = softmax(S) [1, H, N, N]."""

    cut = False
    """Detach the input, so that no gradient flows from one block's attention to another's (AGCAM)."""

    def __init__(self, attn: Any) -> None:
        """Shares the layers of timm's `attn`."""
        super().__init__()
        self.qkv, self.proj, self.num_heads, self.scale = attn.qkv, attn.proj, attn.num_heads, attn.scale
        self.scores, self.weights = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        """[1, N, D] -> [1, N, D]."""
        q, k, v = self.qkv(x.detach() if self.cut else x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        weights = self.weights(self.scores(q @ k.mT * self.scale).softmax(-1))
        return cast(Tensor, self.proj((weights @ v).transpose(1, 2).flatten(2)))


def explicit(vit: VisionTransformer) -> VisionTransformer:
    """A copy of the model with ExplicitAttention. Raises UserError for a ViT that the published code cannot explain."""
    rows, columns = vit.patch_embed.grid_size
    attn = cast(Any, vit.blocks[0]).attn
    plain = describe(vit).is_plain and isinstance(attn.q_norm, nn.Identity) and attn.gate is None
    if not plain or vit.num_prefix_tokens != 1 or vit.global_pool != "token" or rows != columns:
        raise UserError(
            "--models: the published code explains only ViTs with plain blocks, one class token and square images"
        )
    vit = copy.deepcopy(vit)
    for block in vit.blocks:
        block.attn = ExplicitAttention(block.attn)
    return vit


@contextmanager
def hooked(modules: Sequence[nn.Module], hook: Callable[[nn.Module, Any, Tensor], None]) -> Iterator[None]:
    """Call `hook(module, inputs, output)` after each forward pass of the modules."""
    handles = [module.register_forward_hook(hook) for module in modules]
    yield
    for handle in handles:
        handle.remove()


def weight_modules(vit: VisionTransformer) -> list[nn.Module]:
    """The modules that output A, first block first."""
    return [block.attn.weights for block in cast(Sequence[Any], vit.blocks)]


def backward(vit: VisionTransformer, image: Tensor) -> Tensor:
    """Forward pass, then the gradient of the predicted class's logit into every weight.

    Returns the one-hot row [1, C] of that class.
    """
    vit.zero_grad()
    logits = vit(image)
    one_hot = torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1)
    (one_hot * logits).sum().backward()
    return one_hot


def on_grid(row: Tensor) -> Tensor:
    """[patches] -> [h, w], square."""
    side = int(len(row) ** 0.5)
    return row.view(side, side)


def rollout(vit: VisionTransformer, image: Tensor) -> Tensor:
    """Attention rollout of vit-explain: mean over heads, 90 % discarded, N x N products on the CPU."""
    kept: list[Tensor] = []
    with torch.no_grad(), hooked(weight_modules(vit), lambda _, __, A: kept.append(A.cpu())):
        vit(image)
    return _chain([A[0].mean(0) for A in kept], keep_first=True)


def grad_rollout(vit: VisionTransformer, image: Tensor) -> Tensor:
    """Gradient rollout of vit-explain: A times dy/dS, where the first block's A meets the last block's gradient."""
    kept: list[Tensor] = []
    gradients: list[Tensor] = []

    def keep(_: nn.Module, __: Any, A: Tensor) -> None:
        kept.append(A.cpu())
        assert A.grad_fn is not None
        A.grad_fn.register_hook(lambda into, _: gradients.append(into[0].cpu()))  # dy/dS: the softmax's input

    with hooked(weight_modules(vit), keep):
        backward(vit, image)
    pairs = zip(kept, gradients, strict=True)  # in the order of the forward and of the backward pass, as published
    return _chain([(A[0] * E[0]).mean(0).clamp(min=0).detach() for A, E in pairs], keep_first=False)


def _chain(fused: Sequence[Tensor], keep_first: bool) -> Tensor:
    """Rollout of the fused attention [N, N] of all blocks, first block first."""
    eye = torch.eye(len(fused[0])).to(fused[0])
    result = eye
    for F in fused:
        flat = F.flatten()
        smallest = flat.topk(int(len(flat) * DISCARD), largest=False).indices
        flat[smallest[smallest != 0] if keep_first else smallest] = 0
        M = (flat.view_as(F) + eye) / 2
        result = (M / M.sum(-1)) @ result  # as published, the row sums divide columns
    row = result[0, 1:]
    return on_grid(row / row.max())


def agcam(vit: VisionTransformer, image: Tensor) -> Tensor:
    """AGCAM: sum over blocks and heads of relu(dy/dA) sigmoid(S)."""
    scores: list[Tensor] = []
    gradients: list[Tensor] = []
    handles = [
        module.register_full_backward_hook(lambda _, __, outer: gradients.append(cast(Sequence[Tensor], outer)[0]))
        for module in weight_modules(vit)
    ]
    attentions = [block.attn for block in cast(Sequence[Any], vit.blocks)]
    for attention in attentions:
        attention.cut = True
    with hooked([attention.scores for attention in attentions], lambda _, __, S: scores.append(S.detach())):
        backward(vit, image)
    for attention, handle in zip(attentions, handles, strict=True):
        attention.cut = False
        handle.remove()
    # The backward pass meets the last block first. Rows of the class token, columns of the patches.
    S, G = torch.cat(scores[::-1])[:, :, 0, 1:], torch.cat(gradients)[:, :, 0, 1:]
    return on_grid((G.relu() * S.sigmoid()).sum((0, 1)))


def _retain_gradient(_: nn.Module, __: Any, A: Tensor) -> None:
    A.retain_grad()


def gradcam(vit: VisionTransformer, image: Tensor) -> Tensor:
    """Grad-CAM on the last block's attention (Chefer et al.'s baseline), before ReLU and stretching to [0, 1]."""
    kept: list[Tensor] = []
    with hooked(weight_modules(vit), _retain_gradient), hooked(weight_modules(vit), lambda _, __, A: kept.append(A)):
        backward(vit, image)
    assert kept[-1].grad is not None
    A, G = kept[-1].detach()[0, :, 0, 1:], kept[-1].grad[0, :, 0, 1:]
    return on_grid((A * G.mean(1, keepdim=True)).mean(0))


Activations = dict[nn.Module, tuple[Tensor, Tensor]]
"""Input and output of each module in the last forward pass."""


def lrp(vit: VisionTransformer, image: Tensor) -> Tensor:
    """Transformer attribution (Chefer, Gur and Wolf 2021): relevance passed down through what each module kept."""
    kept: Activations = {}

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        kept[module] = (inputs[0], output)

    leaves = [module for module in vit.modules() if not list(module.children())]
    with hooked(leaves, keep), hooked(weight_modules(vit), _retain_gradient):
        one_hot = backward(vit, image)
    with torch.no_grad():
        tokens = kept[vit.norm][1]
        R = torch.zeros_like(tokens)
        R[:, 0] = _linear(one_hot, cast(nn.Linear, vit.head), kept)  # the head reads the class token
        steps: list[Tensor] = []
        for block in reversed(cast(Sequence[Any], vit.blocks)):
            R, C = _through_block(block, R, kept)
            steps.append((cast(Tensor, kept[block.attn.weights][1].grad) * C).clamp(min=0)[0].mean(0))
        eye = torch.eye(tokens.shape[1]).to(R)
        result = eye
        for step in steps[::-1][LRP_START:]:
            result = (eye + step) @ result
    return on_grid(result[0, 1:])


def _through_block(block: Any, R: Tensor, kept: Activations) -> tuple[Tensor, Tensor]:
    """Relevance [1, N, D] of a block's output -> that of its input, and C [1, H, N, N], that of A."""
    attn, mlp = block.attn, block.mlp
    # x = x_in + ls1(attention), then x_mid + ls2(mlp): each sum's relevance is split, each use's is added up.
    R_skip, R = _residual(R, kept[block.norm2][0], kept[block.ls2][1])
    R = R_skip + _linear(_linear(R, mlp.fc2, kept), mlp.fc1, kept)
    R_skip, R = _residual(R, kept[block.norm1][0], kept[block.ls1][1])
    R = _linear(R, attn.proj, kept).unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)  # [1, H, N, E]
    queries, keys, values = kept[attn.qkv][1].unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    C, R_v = _matmul(R, kept[attn.weights][1], values)
    R_q, R_k = _matmul(C, queries, keys.mT)
    R_qkv = torch.stack([R_q, R_k.mT, R_v]).permute(1, 3, 0, 2, 4).flatten(2)
    return R_skip + _linear(R_qkv, attn.qkv, kept), C


def _divide(a: Tensor, b: Tensor) -> Tensor:
    """The guarded division of every rule: a / (b + 1e-9), and 0 where b is 0."""
    denominator = torch.where(b + EPSILON == 0, EPSILON, b + EPSILON)
    return torch.where(b == 0, 0.0, a / denominator)


def _linear(R: Tensor, layer: nn.Linear, kept: Activations) -> Tensor:
    """alpha = 1 times the excitatory half minus beta = 0 times the inhibitory one, which is computed all the same."""
    high, low = kept[layer][0].clamp(min=0), kept[layer][0].clamp(max=0)

    def half(of_high: Tensor, of_low: Tensor) -> Tensor:
        s = _divide(R, high @ of_high.T + low @ of_low.T)
        return high * (s @ of_high) + low * (s @ of_low)

    up, down = layer.weight.clamp(min=0), layer.weight.clamp(max=0)
    return 1 * half(up, down) - 0 * half(down, up)


def _residual(R: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Of the sum a + b: a s and b s with s = R / (a + b), rescaled in proportion to |sum a s| and |sum b s|."""
    s = _divide(R, a + b)
    parts = a * s, b * s
    sums = [part.sum() for part in parts]
    size = sums[0].abs() + sums[1].abs()
    first, second = (p * _divide(_divide(x.abs(), size) * R.sum(), x) for p, x in zip(parts, sums, strict=True))
    return first, second


def _matmul(R: Tensor, U: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """Of the product U V: half of the relevance to each factor."""
    s = _divide(R, U @ V)
    return U * (s @ V.mT) / 2, V * (U.mT @ s) / 2


def abpc(vit: VisionTransformer, image: Tensor, heat: Tensor, label: Tensor) -> Tensor:
    """ABPC, a scalar, of one image [1, 3, H, W] and its map [H, W] in [0, 1]: 22 forward passes with gradients on.

    Pixels are removed by multiplying with 0, which is grey where images are normalised by 0.5 and 0.5.
    """
    areas = []
    for order in (-heat - 1, heat + 1):  # least relevant first, then most relevant first
        probabilities = []
        for step in range(ABPC_STEPS + 1):
            count = heat.numel() * step // ABPC_STEPS
            keep = torch.ones_like(heat).flatten()
            keep[order.flatten().topk(count).indices] = 0
            probabilities.append(vit(image * keep.view_as(heat)).softmax(-1)[0, label].detach())
        areas.append(torch.stack(probabilities).mean())
    return areas[0] - areas[1]
