"""Tiny classifiers of every kind that the explanation methods support, and images for them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from timm.layers import SwiGLU, SwiGLUPacked
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import (
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
    VisionTransformer,
)
from torch import Tensor, nn

from explain.explained_model import ExplainedModel, explained_model
from models.baseline import PlainViT
from models.two_stage import TwoStageModel
from tests.models.small import config, images, shaken

CLASSES = 5
NO_TOKEN: dict[str, Any] = {"class_token": False}


@dataclass(frozen=True)
class Case:
    """A tiny model and how to explain it."""

    make: Callable[[], nn.Module]
    size: tuple[int, int] = (32, 32)
    stage: Literal[1, 2] = 2

    def model(self) -> nn.Module:
        """In eval mode, with random weights, the same every time."""
        torch.manual_seed(0)  # some biases stay as torch draws them
        return shaken(self.make()).eval()

    def images(self, batch: int = 3) -> Tensor:
        return images(batch, self.size, seed=1)

    def explained(self, model: nn.Module, x: Tensor) -> ExplainedModel:
        return explained_model(model, x, self.stage)


def vit(kind: type[VisionTransformer] = VisionTransformer, **settings: Any) -> VisionTransformer:
    defaults = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "mlp_ratio": 2}
    return kind(**(defaults | {"num_classes": CLASSES} | settings))


def two_stage(**changes: Any) -> TwoStageModel:
    return TwoStageModel(config(**changes), CLASSES, (32, 32))


def plain(pooling: str) -> PlainViT:
    return PlainViT(config(name="vit", pooling=pooling), CLASSES, (32, 32))


CASES = {
    "class_token": Case(vit),
    "dino": Case(lambda: vit(reg_tokens=4, init_values=0.5, no_embed_class=True)),
    "distilled": Case(lambda: vit(VisionTransformerDistilled)),
    "gap": Case(lambda: vit(**NO_TOKEN, global_pool="avg")),
    "gap_with_token": Case(lambda: vit(global_pool="avg")),
    "map": Case(lambda: vit(**NO_TOKEN, global_pool="map")),
    "wide": Case(lambda: vit(img_size=(32, 48)), (32, 48)),
    "dynamic": Case(lambda: vit(dynamic_img_size=True), (48, 32)),
    "parallel_scaling": Case(lambda: vit(block_fn=ParallelScalingBlock)),
    "parallel_things": Case(lambda: vit(block_fn=ParallelThingsBlock)),
    "res_post": Case(lambda: vit(block_fn=ResPostBlock)),
    "qk_norm": Case(lambda: vit(qk_norm=True, scale_attn_norm=True, scale_mlp_norm=True)),
    "swiglu": Case(lambda: vit(mlp_layer=SwiGLU, act_layer=nn.SiLU)),
    "swiglu_packed": Case(lambda: vit(mlp_layer=SwiGLUPacked, act_layer=nn.SiLU)),
    "plain_cls": Case(lambda: plain("cls")),
    "plain_aim": Case(lambda: plain("aim")),
    "plain_gap_cls": Case(lambda: plain("gap_cls")),
    "stage_1": Case(two_stage, stage=1),
    "stage_2": Case(two_stage, stage=2),
}
TIMM = tuple(name for name in CASES if "stage" not in name and "plain" not in name)
"""Cases of timm's own models."""


def waves() -> VisionTransformer:
    """A float64 ViT with weights in closed form, independent of random generators."""
    model = vit(depth=2, reg_tokens=1).double().eval()
    with torch.no_grad():
        for index, (name, p) in enumerate(model.named_parameters()):
            wave = (torch.arange(p.numel()).double() * (1 + 0.37 * index) + index).sin().view(p.shape)
            one_dimensional = 0.1 * wave + float(name.endswith("weight"))  # the weights of norms stay near 1
            p.copy_(one_dimensional if p.ndim == 1 else wave * (2 / p[0].numel()) ** 0.5)
    return model


def wave_image() -> Tensor:
    """[1, 3, 32, 32] in closed form, for `waves()`."""
    return (torch.arange(3 * 32 * 32).double() * 0.731).sin().view(1, 3, 32, 32)
