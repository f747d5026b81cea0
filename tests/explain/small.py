"""Tiny classifiers of every kind that the explanation methods support, and images for them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from timm.layers import SwiGLU, SwiGLUPacked
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.naflexvit import NaFlexVit
from timm.models.vision_transformer import (
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
    VisionTransformer,
)
from timm.models.vision_transformer_relpos import ResPostRelPosBlock, VisionTransformerRelPos
from torch import Tensor, nn

from explain.explained_model import ExplainedModel, explained_model
from models.baseline import PlainViT
from models.two_stage import TwoStageModel
from tests.models.small import (
    config,
    eva_t_dinov3,
    eva_t_eva02,
    eva_t_gap,
    eva_t_mixed,
    eva_t_pe,
    eva_t_post,
    images,
    shaken,
)

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


def beit(**settings: Any) -> Beit:
    shape: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
    return Beit(**shape | {"num_classes": CLASSES} | settings)


def rel_pos(**settings: Any) -> VisionTransformerRelPos:
    shape: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
    return VisionTransformerRelPos(**shape | {"num_classes": CLASSES} | settings)


def naflex(**settings: Any) -> NaFlexVit:
    shape: dict[str, Any] = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "class_token": True}
    return NaFlexVit(**shape | {"global_pool": "token", "num_classes": CLASSES} | settings)


def eva(kind: Callable[..., Eva], **settings: Any) -> Eva:
    return kind(**{"img_size": 32, "num_classes": CLASSES} | settings)


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
    "dinov3": Case(lambda: eva(eva_t_dinov3, global_pool="token")),
    "dinov3_avg": Case(lambda: eva(eva_t_dinov3, num_reg_tokens=2), (48, 32)),
    "eva": Case(lambda: eva(Eva, patch_size=8, embed_dim=32, depth=3, num_heads=2, global_pool="token")),
    "eva02": Case(lambda: eva(eva_t_eva02)),
    "pe": Case(lambda: eva(eva_t_pe)),
    "rope_mixed": Case(lambda: eva(eva_t_mixed)),
    "rope_gap": Case(lambda: eva(eva_t_gap)),
    "eva_post": Case(lambda: eva(eva_t_post)),
    "beit": Case(lambda: beit(use_rel_pos_bias=True, init_values=0.1, use_abs_pos_emb=False)),
    "beit_shared": Case(lambda: beit(use_shared_rel_pos_bias=True, global_pool="token")),
    "rel_pos": Case(lambda: rel_pos(class_token=True, global_pool="token")),
    "rel_pos_shared": Case(lambda: rel_pos(shared_rel_pos=True, rel_pos_type="bias", block_fn=ResPostRelPosBlock)),
    "naflex": Case(lambda: naflex(reg_tokens=2, global_pool="avg"), (48, 32)),
    "naflex_map": Case(lambda: naflex(class_token=False, global_pool="map", embed_proj_type="conv")),
    "naflex_rope": Case(lambda: naflex(rope_type="axial", pos_embed="none")),
    "plain_cls": Case(lambda: plain("cls")),
    "plain_aim": Case(lambda: plain("aim")),
    "plain_gap_cls": Case(lambda: plain("gap_cls")),
    "stage_1": Case(two_stage, stage=1),
    "stage_2": Case(two_stage, stage=2),
    "stage_1_dinov3": Case(lambda: two_stage(backbone="eva_t_dinov3"), stage=1),
    "stage_2_dinov3": Case(lambda: two_stage(backbone="eva_t_dinov3"), stage=2),
    "stage_2_mean": Case(lambda: two_stage(backbone="vit_t_gap"), stage=2),
    "stage_2_rope_mean": Case(lambda: two_stage(backbone="eva_t_gap"), stage=2),
    "stage_2_soft_mean": Case(lambda: two_stage(backbone="vit_t_gap", mask_kind="soft"), stage=2),
}
TIMM = tuple(name for name in CASES if "stage" not in name and "plain" not in name)
"""Cases of timm's own models."""
ROTARY = tuple(name for name in CASES if any(kind in name for kind in ("dinov3", "eva02", "pe", "rope")))
"""Cases with rotary positions, which lrp refuses."""
STAGES = tuple(name for name in CASES if name.startswith("stage"))


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
