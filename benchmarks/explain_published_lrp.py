"""Chefer et al.'s relevance propagation as published: an explicit pass down through what every module kept.

The rules are those of the textbook form that the tests use. A linear layer's inhibitory half is computed and multiplied
by 0, as in the published code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from explain_published import attentions, backward, hooked, on_grid
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tests.explain.textbook_lrp import matmul, merge, negative, positive, q, residual

START = 1  # the first block of the product, as in the experiments


@dataclass(frozen=True)
class Kept:
    """What a module keeps of its last forward."""

    input: Tensor
    output: Tensor


Memory = dict[nn.Module, Kept]


def lrp(vit: VisionTransformer, image: Tensor) -> Tensor:
    """Transformer attribution of the predicted class: [1, 3, H, W] -> [h, w]; see `explain_published`."""
    memory: Memory = {}
    modules = [module for module in vit.modules() if not list(module.children())]

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        memory[module] = Kept(inputs[0], output)

    def keep_gradient(_: nn.Module, __: Any, weights: Tensor) -> None:
        weights.retain_grad()

    with hooked(modules, keep), hooked([a.weights for a in attentions(vit)], keep_gradient):
        one_hot = backward(vit, image)
    with torch.no_grad():
        return _map(vit, memory, one_hot)


def _map(vit: VisionTransformer, memory: Memory, one_hot: Tensor) -> Tensor:
    tokens = memory[vit.norm].output
    R = torch.zeros_like(tokens)
    R[:, 0] = merge(tokens[:, 0], linear(one_hot, vit.head, memory))
    steps: list[Tensor] = []
    for block in reversed(cast(Sequence[Any], vit.blocks)):
        R, C = _through(block, R, memory)
        G = memory[block.attn.weights].output.grad
        assert G is not None
        steps.append(positive(G * C)[0].mean(0))
    eye = torch.eye(len(steps[0])).to(R)
    result = eye
    for step in steps[::-1][START:]:
        result = (eye + step) @ result
    return on_grid(result[0, 1:])


def linear(R: Tensor, layer: nn.Module, memory: Memory) -> Tensor:
    """alpha = 1 times the excitatory half less beta = 0 times the inhibitory one."""
    x, weight = memory[layer].input, layer.weight
    assert isinstance(weight, Tensor)
    up, down = positive(weight), negative(weight)
    return 1 * _half(R, x, up, down) - 0 * _half(R, x, down, up)


def _half(R: Tensor, x: Tensor, of_positive: Tensor, of_negative: Tensor) -> Tensor:
    high, low = positive(x), negative(x)
    s = q(R, high @ of_positive.T + low @ of_negative.T)
    return high * (s @ of_positive) + low * (s @ of_negative)


def _through(block: Any, R: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
    """Relevance [1, N, D] of the block's output -> that of its input, and C [1, H, N, N]."""
    attn, mlp = block.attn, block.mlp
    x_in, x_mid = memory[block.norm1].input, memory[block.norm2].input
    R_mid, R = residual(R, x_mid, memory[block.ls2].output, "ours")
    R = linear(linear(R, mlp.fc2, memory), mlp.fc1, memory)
    R_in, R = residual(merge(x_mid, R_mid, R), x_in, memory[block.ls1].output, "ours")
    R = linear(R, attn.proj, memory).unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)
    queries, keys, values = memory[attn.qkv].output.unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    C, R_v = matmul(R, memory[attn.weights].output, values)
    R_q, R_k = matmul(C, queries, keys.mT)
    R_qkv = torch.stack([R_q, R_k.mT, R_v]).permute(1, 3, 0, 2, 4).flatten(2)
    return merge(x_in, R_in, linear(R_qkv, attn.qkv, memory)), C
