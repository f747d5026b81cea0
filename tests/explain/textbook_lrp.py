"""Relevance by hand through timm's plain Block, one image at a time: every formula of the rules as it is written."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

EPSILON = 1e-9


def q(a: Tensor, b: Tensor) -> Tensor:
    denominator = torch.where(b + EPSILON == 0, EPSILON, b + EPSILON)
    return torch.where(b == 0, 0.0, a / denominator)


def positive(t: Tensor) -> Tensor:
    return t.clamp(min=0)


def negative(t: Tensor) -> Tensor:
    return t.clamp(max=0)


def linear(R: Tensor, x: Tensor, W: Tensor, rules: str) -> Tensor:
    z_up, z_down = positive(x) @ positive(W).T, negative(x) @ negative(W).T
    s_up, s_down = (q(R, z_up), q(R, z_down)) if rules == "plain" else (q(R, z_up + z_down),) * 2
    return positive(x) * (s_up @ positive(W)) + negative(x) * (s_down @ negative(W))


def residual(R: Tensor, a: Tensor, b: Tensor, rules: str) -> tuple[Tensor, Tensor]:
    s = q(R, a + b)
    a, b = a * s, b * s
    if rules == "plain":
        return a, b
    sum_a, sum_b, total = a.sum(), b.sum(), R.sum()
    both = sum_a.abs() + sum_b.abs()
    return a * q(q(sum_a.abs(), both) * total, sum_a), b * q(q(sum_b.abs(), both) * total, sum_b)


def matmul(R: Tensor, U: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    s = q(R, U @ V)
    return U * (s @ V.mT) / 2, V * (U.mT @ s) / 2


def merge(x: Tensor, *relevances: Tensor) -> Tensor:
    """Of a tensor that is used several times."""
    return sum(relevances, torch.zeros_like(x))


def guarded_merge(x: Tensor, *relevances: Tensor) -> Tensor:
    """As published: the same up to 1e-9 / x."""
    return x * sum((q(R, x) for R in relevances), torch.zeros_like(x))


def box(R: Tensor, X: Tensor, W: Tensor, patch: int) -> Tensor:
    """R [1, D, h, w], X [1, 3, height, width] -> relevance of the pixels."""
    lo, hi = torch.full_like(X, float(X.min())), torch.full_like(X, float(X.max()))
    up, down = positive(W), negative(W)
    Z = F.conv2d(X, W, stride=patch) - F.conv2d(lo, up, stride=patch) - F.conv2d(hi, down, stride=patch) + EPSILON
    s = R / Z
    back = [F.conv_transpose2d(s, w, stride=patch) for w in (W, up, down)]
    return X * back[0] - lo * back[1] - hi * back[2]


@dataclass
class Kept:
    """One block's activations, by the names of the formulas."""

    x_in: Tensor
    ln1: Tensor
    qkv: tuple[Tensor, Tensor, Tensor]
    A: Tensor
    context: Tensor
    branch_1: Tensor
    x_mid: Tensor
    ln2: Tensor
    hidden: Tensor
    branch_2: Tensor
    C: Tensor | None = None


def forward_block(block: Any, x: Tensor) -> Kept:
    """x [N, D]."""
    attn, (N, D) = block.attn, x.shape
    ln1 = block.norm1(x)
    q_, k, v = attn.qkv(ln1).view(N, 3, attn.num_heads, -1).permute(1, 2, 0, 3)
    A = (q_ @ k.mT * attn.scale).softmax(-1)
    context = (A @ v).transpose(0, 1).reshape(N, D)
    branch_1 = block.ls1(attn.proj(context))
    x_mid = x + branch_1
    ln2 = block.norm2(x_mid)
    hidden = block.mlp.act(block.mlp.fc1(ln2))
    branch_2 = block.ls2(block.mlp.fc2(hidden))
    return Kept(x, ln1, (q_, k, v), A, context, branch_1, x_mid, ln2, hidden, branch_2)


def backward_block(block: Any, kept: Kept, R: Tensor, rules: str) -> Tensor:
    """R of the block's output -> R of its input; C is kept on the way."""
    mlp, attn = block.mlp, block.attn
    R_mid, R = residual(R, kept.x_mid, kept.branch_2, rules)
    R = linear(linear(R, kept.hidden, mlp.fc2.weight, rules), kept.ln2, mlp.fc1.weight, rules)
    R_in, R = residual(merge(kept.x_mid, R_mid, R), kept.x_in, kept.branch_1, rules)
    R = linear(R, kept.context, attn.proj.weight, rules)
    q_, k, v = kept.qkv
    kept.C, R_v = matmul(R.view(len(R), attn.num_heads, -1).transpose(0, 1), kept.A, v)
    R_q, R_k = matmul(kept.C, q_, k.mT)
    R_qkv = torch.stack([R_q, R_k.mT, R_v]).permute(2, 0, 1, 3).reshape(len(R), -1)
    return merge(kept.x_in, R_in, linear(R_qkv, kept.ln1, attn.qkv.weight, rules))


@dataclass
class Run:
    """An explained image: its blocks, the attention gradients, the relevance of the tokens and of the pixels."""

    blocks: list[Kept]
    G: tuple[Tensor, ...]
    tokens: Tensor
    pixels: Tensor


def run(vit: Any, image: Tensor, target: int | None, rules: str) -> Run:
    """image [1, 3, H, W]; any number of registers, LayerScale, class token or average pooling."""
    P, pos = vit.num_prefix_tokens, vit.pos_embed[0]
    patches = vit.patch_embed(image)[0]
    prefix = [t[0] for t in (vit.cls_token, vit.reg_token) if t is not None]
    if vit.no_embed_class:
        before, x = patches, torch.cat([*prefix, patches + pos])
    else:
        before = torch.cat([*prefix, patches])
        x = before + pos
    blocks: list[Kept] = []
    for block in vit.blocks:
        blocks.append(forward_block(block, x))
        x = blocks[-1].x_mid + blocks[-1].branch_2
    normed = vit.norm(x)
    pooled = vit.fc_norm(normed[0] if vit.global_pool == "token" else normed[P:].mean(0))
    logits = vit.head(pooled)
    c = int(logits.argmax()) if target is None else target
    G = torch.autograd.grad(logits[c], [kept.A for kept in blocks])
    with torch.no_grad():
        R = torch.zeros_like(normed)
        R_pooled = linear(F.one_hot(torch.tensor([c]), len(logits)).to(x), pooled[None], vit.head.weight, rules)[0]
        if vit.global_pool == "token":
            R[0] = merge(normed[0], R_pooled)
        else:
            R[P:] = normed[P:] * q(R_pooled, normed[P:].sum(0))
        for block, kept in zip(reversed(vit.blocks), reversed(blocks), strict=True):
            R = backward_block(block, kept, R, rules)
        R_before = residual(R[P:] if vit.no_embed_class else R, before, pos, rules)[0][-len(patches) :]
        grid, patch = vit.patch_embed.grid_size, vit.patch_embed.patch_size[0]
        pixels = box(R_before.T.reshape(1, -1, *grid), image, vit.patch_embed.proj.weight, patch)
    return Run(blocks, G, R, pixels[0].sum(0))


def lrp(vit: VisionTransformer, image: Tensor, target: int | None, variant: str, rules: str, start: int = 0) -> Tensor:
    """[h, w], or [H, W] for "full"."""
    ran = run(vit, image, target, rules)
    if variant == "full":
        return ran.pixels
    C = [kept.C for kept in ran.blocks if kept.C is not None]
    A, G, eye = [kept.A for kept in ran.blocks], ran.G, torch.eye(len(ran.tokens)).to(ran.tokens)

    def product(matrices: list[Tensor]) -> Tensor:
        out = eye
        for matrix in matrices[start:]:
            out = (eye + matrix) @ out
        return out - eye  # the identity alone adds the same to every patch

    matrix = {
        "transformer_attribution": lambda: product([positive(g * c).mean(0) for g, c in zip(G, C, strict=True)]),
        "rollout": lambda: product([positive(c).mean(0) for c in C]),
        "last_layer": lambda: positive(C[-1]).mean(0),
        "last_layer_grad": lambda: positive(G[-1] * C[-1]).mean(0),
        "second_layer": lambda: positive(C[1]).mean(0),
        "second_layer_grad": lambda: positive(G[1] * C[1]).mean(0),
        "last_layer_attn": lambda: A[-1].mean(0),
    }[variant]()
    P = vit.num_prefix_tokens
    row = matrix[0] if vit.global_pool == "token" else matrix[P:].mean(0)
    return row[P:].view(vit.patch_embed.grid_size).detach()
