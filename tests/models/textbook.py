"""Stage 1 and masked attention as Python loops over scalars, from their formulas."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.masked_vit import MaskedViT
from models.part_discovery import PartHead, PartNoise

Rows = list[list[float]]


@dataclass
class Slow:
    """One image: lists over patches, then channels."""

    logits: Rows = field(default_factory=list)
    maps: Rows = field(default_factory=list)
    y: Rows = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)
    q: list[float] = field(default_factory=list)
    soft: list[float] = field(default_factory=list)
    features: Rows = field(default_factory=list)
    scores: Rows = field(default_factory=list)


def softmax(values: list[float]) -> list[float]:
    top = max(values)
    powers = [math.exp(v - top) for v in values]
    return [p / sum(powers) for p in powers]


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def part_logits(x: Rows, head: PartHead, thresholds: list[float] | None = None) -> Rows:
    """Scaled negative squared distances / tau; with thresholds, in the form set in the head's config."""
    prototypes, tau = head.prototypes.tolist(), head.config.temperature
    rows = []
    for token in x:
        row = []
        for k, prototype in enumerate(prototypes):
            value = -sum((a - b) ** 2 for a, b in zip(token, prototype, strict=True))
            if thresholds is not None:
                claim = dot(token, prototype)
                value = claim if head.config.threshold_form == "dot_product" else value
                if k < head.config.num_parts and claim < thresholds[k]:
                    value = -math.inf
            row.append(value * head.config.logit_scale / tau)
        rows.append(row)
    return rows


def modulated(x: Rows, maps: Rows, head: PartHead) -> Rows:
    """[D][K+1]: mean over all positions, then one mean and variance over all D (K+1) numbers."""
    weight, bias = head.modulation.weight.tolist(), head.modulation.bias.tolist()
    count, width, channels = len(x), len(x[0]), len(maps[0])
    pooled = [[sum(maps[u][k] * x[u][d] for u in range(count)) / count for k in range(channels)] for d in range(width)]
    flat = [value for row in pooled for value in row]
    mean = sum(flat) / len(flat)
    variance = sum((value - mean) ** 2 for value in flat) / len(flat)
    return [
        [(pooled[d][k] - mean) / math.sqrt(variance + 1e-5) * weight[d][k] + bias[d][k] for k in range(channels)]
        for d in range(width)
    ]


def class_scores(features: Rows, head: PartHead, keep: list[bool] | None) -> Rows:
    """[C][K]: dropped vectors are 0, the others are divided by the keep probability."""
    dropout = head.config.part_dropout
    scores = []
    for weight in head.classifier.weight.tolist():
        row = []
        for k in range(head.config.num_parts):
            scale = 1.0 if keep is None else keep[k] / (1 - dropout)
            row.append(scale * dot(weight, [features[d][k] for d in range(len(features))]))
        scores.append(row)
    return scores


def stage_one(x: Tensor, head: PartHead, noise: PartNoise, b: int, thresholds: list[float] | None = None) -> Slow:
    """Stage 1 for image `b` of tokens [B, N, D]."""
    out, parts = Slow(), head.config.num_parts
    zeros = torch.zeros(x.shape[1], parts + 1).tolist()
    tau = head.config.temperature
    maps_noise = zeros if noise.gumbel is None else noise.gumbel[b].tolist()
    mask_noise = maps_noise if noise.gumbel_mask is None else noise.gumbel_mask[b].tolist()
    keep = [True] * parts if noise.keep_in_mask is None else noise.keep_in_mask[b].tolist()
    out.logits = part_logits(x[b].tolist(), head, thresholds)
    for u, row in enumerate(out.logits):
        out.maps.append(softmax([a + g / tau for a, g in zip(row, maps_noise[u], strict=True)]))
        y = softmax([a + g / tau for a, g in zip(row, mask_noise[u], strict=True)])
        y = [value * keep[k] if k < parts else value for k, value in enumerate(y)]
        foreground, background = max(y[:parts]), y[parts]
        out.y.append(y)
        out.mask.append(foreground >= background)
        out.q.append(foreground / (foreground + background))
        out.soft.append(foreground)
    out.features = modulated(x[b].tolist(), out.maps, head)
    out.scores = class_scores(
        out.features, head, None if noise.keep_features is None else noise.keep_features[b].tolist()
    )
    return out


def biased_attention(q: Tensor, k: Tensor, v: Tensor, bias_BS: Tensor, scale: float) -> Tensor:
    """Attention of q, k, v [B, H, S, E], scalar by scalar; `bias` is added to the scores of each key."""
    out = torch.zeros_like(v)
    for b, h, i in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        scores = [
            scale * dot(q[b, h, i].tolist(), k[b, h, j].tolist()) + bias_BS[b, j].item() for j in range(k.shape[2])
        ]
        for j, weight in enumerate(softmax(scores)):
            out[b, h, i] += weight * v[b, h, j]
    return out


def stage_two(model: MaskedViT, images: Tensor, bias_BN: Tensor) -> Tensor:
    """Class logits: every block adds the bias to its keys, prefix tokens get none."""
    vit = model.backbone
    x = vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))
    bias = torch.cat([torch.zeros(len(x), vit.num_prefix_tokens), bias_BN], dim=1)
    for block in vit.blocks:
        attn = block.attn
        qkv = attn.qkv(block.norm1(x)).reshape(*x.shape[:2], 3, attn.num_heads, -1)
        q, k, v = (qkv[:, :, i].transpose(1, 2) for i in range(3))
        out = biased_attention(attn.q_norm(q), attn.k_norm(k), v, bias, q.shape[-1] ** -0.5)
        x = x + block.ls1(attn.proj(attn.norm(out.transpose(1, 2).flatten(2))))
        x = x + block.ls2(block.mlp(block.norm2(x)))
    return model.head(model.fc_norm(vit.norm(x)[:, 0]))
