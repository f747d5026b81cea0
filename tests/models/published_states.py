"""Tiny random state dicts with the published names and shapes, and their forward pass from the formulas.

Shape legend: B images, N patches, P prefix tokens, S = P + N tokens, D width, K parts and a background.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

State = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Sizes:
    """The defaults are those of vit_t_dino and, without registers, vit_t_rad, at 32 x 32 pixels."""

    width: int = 32
    depth: int = 3
    hidden: int = 64
    patch: int = 8
    patches: int = 16
    registers: int = 4
    parts: int = 3
    classes: int = 5
    gated: bool = False


def timm_shapes(s: Sizes) -> Shapes:
    d = s.width
    shapes: Shapes = {"cls_token": (1, 1, d), "pos_embed": (1, s.patches + (not s.registers), d)}
    shapes |= {"reg_token": (1, s.registers, d)} if s.registers else {}
    shapes |= {"patch_embed.proj.weight": (d, 3, s.patch, s.patch), "patch_embed.proj.bias": (d,)}
    for i in range(s.depth):
        shapes |= {f"blocks.{i}.norm{k}.{kind}": (d,) for k in (1, 2) for kind in ("weight", "bias")}
        shapes |= {f"blocks.{i}.attn.qkv.weight": (3 * d, d), f"blocks.{i}.attn.qkv.bias": (3 * d,)}
        shapes |= {f"blocks.{i}.attn.proj.weight": (d, d), f"blocks.{i}.attn.proj.bias": (d,)}
        shapes |= {f"blocks.{i}.ls1.gamma": (d,), f"blocks.{i}.ls2.gamma": (d,)}
        inner = s.hidden * (2 if s.gated else 1)
        shapes |= {f"blocks.{i}.mlp.fc1.weight": (inner, d), f"blocks.{i}.mlp.fc1.bias": (inner,)}
        shapes |= {f"blocks.{i}.mlp.fc2.weight": (d, s.hidden), f"blocks.{i}.mlp.fc2.bias": (d,)}
    return shapes | {"norm.weight": (d,), "norm.bias": (d,)}


def hugging_face_shapes(s: Sizes) -> Shapes:
    d = s.width
    shapes: Shapes = {"embeddings.cls_token": (1, 1, d), "embeddings.position_embeddings": (1, s.patches + 1, d)}
    shapes |= {"embeddings.mask_token": (1, d)}
    shapes |= {"embeddings.register_tokens": (1, s.registers, d)} if s.registers else {}
    projection = "embeddings.patch_embeddings.projection"
    shapes |= {f"{projection}.weight": (d, 3, s.patch, s.patch), f"{projection}.bias": (d,)}
    up, down = ("weights_in", "weights_out") if s.gated else ("fc1", "fc2")
    for i in range(s.depth):
        layer = f"encoder.layer.{i}"
        shapes |= {f"{layer}.norm{k}.{kind}": (d,) for k in (1, 2) for kind in ("weight", "bias")}
        for linear in ("attention.query", "attention.key", "attention.value", "output.dense"):
            shapes |= {f"{layer}.attention.{linear}.weight": (d, d), f"{layer}.attention.{linear}.bias": (d,)}
        shapes |= {f"{layer}.layer_scale1.lambda1": (d,), f"{layer}.layer_scale2.lambda1": (d,)}
        inner = s.hidden * (2 if s.gated else 1)
        shapes |= {f"{layer}.mlp.{up}.weight": (inner, d), f"{layer}.mlp.{up}.bias": (inner,)}
        shapes |= {f"{layer}.mlp.{down}.weight": (d, s.hidden), f"{layer}.mlp.{down}.bias": (d,)}
    return shapes | {"layernorm.weight": (d,), "layernorm.bias": (d,)}


def part_shapes(s: Sizes, product: bool = False) -> Shapes:
    d, channels = s.width, s.parts + 1
    modulation: Shapes = {"modulation.weight": (d, channels), "modulation.bias": (d, channels)}
    shapes: Shapes = {"modulation": (1, d, channels)} if product else modulation
    return shapes | {"fc_landmarks.weight": (channels, d, 1, 1), "fc_class_landmarks.weight": (s.classes, d)}


def published_shapes(format: str, s: Sizes, product: bool = False) -> Shapes:
    """Every name of a published state dict with its shape."""
    backbone = hugging_face_shapes(s) if format == "ifam-hf" else timm_shapes(s)
    first = backbone | part_shapes(s, product)
    if format == "pdiscoformer":
        return first
    second = backbone | {"fc_norm.weight": (s.width,), "fc_norm.bias": (s.width,), "head.weight": (s.classes, s.width)}
    second |= {"prefix_attn_mask": (1, 1 + s.registers)}
    return {f"stage_{n}.{name}": shape for n, stage in ((1, first), (2, second)) for name, shape in stage.items()}


def published_state(format: str, s: Sizes | None = None, product: bool = False, seed: int = 0) -> State:
    """Random values: attention and part maps far from uniform, norms and scales near one."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in published_shapes(format, s or Sizes(), product).items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("prefix_attn_mask"):
            state[name] = torch.ones(shape)
        elif "norm" in name and name.endswith("weight") or "gamma" in name or "lambda" in name or "modulation" in name:
            state[name] = 1 + 0.3 * noise
        elif len(shape) in (1, 3) or "fc_landmarks" in name:
            state[name] = 0.3 * noise
        else:
            state[name] = 1.5 * noise / math.prod(shape[1:]) ** 0.5
    return state


@dataclass(frozen=True)
class Expected:
    """Outputs of the formulas for a batch."""

    maps: Tensor
    """[B, K+1, N]."""
    mask: Tensor
    """[B, N] bool."""
    part_logits: Tensor
    """[B, C, K]."""
    logits: Tensor | None
    """[B, C], stage 2."""


def stage(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): t.double() for name, t in state.items() if name.startswith(prefix)}


def forward(state: State, images: Tensor, heads: int = 2) -> Expected:
    """Evaluation without noise of both stages (or the single one of PDiscoFormer); backbones with timm's names."""
    two_stages = any(name.startswith("stage_1.") for name in state)
    first = stage(state, "stage_1." if two_stages else "")
    images = images.double()
    x_BND = patch_tokens(first, images, heads)
    maps_BNK, mask_BN, scores = parts(first, x_BND)
    logits = second_stage(stage(state, "stage_2."), images, mask_BN, heads) if two_stages else None
    return Expected(maps_BNK.transpose(1, 2), mask_BN, scores, logits)


def patch_tokens(s: State, images: Tensor, heads: int) -> Tensor:
    x = embedded(s, images)
    everything = torch.ones(x.shape[:2], dtype=torch.bool)
    x = normalised(blocks(s, x, everything, heads), s["norm.weight"], s["norm.bias"], 1e-6)
    return x[:, x.shape[1] - images.shape[-1] * images.shape[-2] // s["patch_embed.proj.weight"].shape[-1] ** 2 :]


def parts(s: State, x_BND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Maps [B, N, K+1], mask [B, N], class scores of every part [B, C, K]."""
    prototypes = s["fc_landmarks.weight"][:, :, 0, 0]
    l_BNK = -((x_BND[:, :, None] - prototypes) ** 2).sum(-1)
    maps = l_BNK.exp() / l_BNK.exp().sum(-1, keepdim=True)
    v_BDK = torch.stack([(maps[:, :, k, None] * x_BND).mean(1) for k in range(len(prototypes))], dim=-1)
    if "modulation" in s:
        v_BDK = v_BDK * s["modulation"]
    else:
        mean, var = v_BDK.mean((1, 2), keepdim=True), v_BDK.var((1, 2), keepdim=True, unbiased=False)
        v_BDK = (v_BDK - mean) / (var + 1e-5).sqrt() * s["modulation.weight"] + s["modulation.bias"]
    scores = torch.stack([v_BDK[..., k] @ s["fc_class_landmarks.weight"].T for k in range(len(prototypes) - 1)], dim=-1)
    return maps, maps[..., :-1].max(-1).values >= maps[..., -1], scores


def second_stage(s: State, images: Tensor, mask_BN: Tensor, heads: int) -> Tensor:
    x = embedded(s, images)
    prefix = torch.ones(len(x), x.shape[1] - mask_BN.shape[1], dtype=torch.bool)
    x = blocks(s, x, torch.cat([prefix, mask_BN], dim=1), heads)
    token = normalised(x[:, 0], s["norm.weight"], s["norm.bias"], 1e-6)
    return normalised(token, s["fc_norm.weight"], s["fc_norm.bias"], 1e-5) @ s["head.weight"].T


def embedded(s: State, images: Tensor) -> Tensor:
    """[B, 3, H, W] -> [B, S, D]: class token, registers, patches; with registers, only patches have positions."""
    weight, bias = s["patch_embed.proj.weight"], s["patch_embed.proj.bias"]
    x = torch.stack([(weight * patch[:, None]).sum((2, 3, 4)) + bias for patch in patches(images, weight.shape[-1])], 1)
    cls, registers = s["cls_token"].expand(len(x), -1, -1), s.get("reg_token")
    if registers is None:
        return torch.cat([cls, x], dim=1) + s["pos_embed"]
    return torch.cat([cls, registers.expand(len(x), -1, -1), x + s["pos_embed"]], dim=1)


def patches(images: Tensor, side: int) -> Iterator[Tensor]:
    """Row by row, [B, 3, side, side] each."""
    for top in range(0, images.shape[2], side):
        for left in range(0, images.shape[3], side):
            yield images[:, :, top : top + side, left : left + side]


def blocks(s: State, x: Tensor, keys_BS: Tensor, heads: int) -> Tensor:
    """All blocks; no token attends to those outside `keys_BS` (bool)."""
    for i in range(len({name.split(".")[1] for name in s if name.startswith("blocks.")})):
        block = stage(s, f"blocks.{i}.")
        h = normalised(x, block["norm1.weight"], block["norm1.bias"], 1e-6)
        q, k, v = (h @ block["attn.qkv.weight"].T + block["attn.qkv.bias"]).chunk(3, dim=-1)
        outs = [attend(*each, keys_BS) for each in zip(*(t.chunk(heads, dim=-1) for t in (q, k, v)), strict=True)]
        out = torch.cat(outs, dim=-1) @ block["attn.proj.weight"].T + block["attn.proj.bias"]
        x = x + block["ls1.gamma"] * out
        h = normalised(x, block["norm2.weight"], block["norm2.bias"], 1e-6)
        h = h @ block["mlp.fc1.weight"].T + block["mlp.fc1.bias"]
        h = h * (1 + torch.erf(h / math.sqrt(2))) / 2
        x = x + block["ls2.gamma"] * (h @ block["mlp.fc2.weight"].T + block["mlp.fc2.bias"])
    return x


def attend(q: Tensor, k: Tensor, v: Tensor, keys_BS: Tensor) -> Tensor:
    scores = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).masked_fill(~keys_BS[:, None], -math.inf)
    return scores.softmax(-1) @ v


def normalised(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
    return (x - mean) / (var + eps).sqrt() * weight + bias
