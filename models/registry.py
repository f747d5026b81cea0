"""Models by name, and how one is built with reproducible fresh layers."""

from collections.abc import Callable
from typing import cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from common.registry import Registry
from models.baseline import PlainViT
from models.cnn import Cnn
from models.config import ModelConfig
from models.given_mask import DecoupledViT, LateMaskingViT
from models.pdiscoformer import PDiscoFormer
from models.two_stage import TwoStageModel

AnyModel = TwoStageModel | PlainViT | DecoupledViT | LateMaskingViT | PDiscoFormer | Cnn
MODELS: Registry[Callable[[ModelConfig, int, tuple[int, int]], AnyModel]] = Registry("model (--model.name)")
MODELS.register("two_stage")(TwoStageModel)
MODELS.register("vit")(PlainViT)
MODELS.register("decoupled")(DecoupledViT)
MODELS.register("late_masking")(LateMaskingViT)
MODELS.register("pdiscoformer")(PDiscoFormer)
MODELS.register("cnn")(Cnn)


def classifying_vit(model: nn.Module) -> VisionTransformer:
    """The ViT that classifies: a timm one itself, or the backbone of one of our models (of its last stage)."""
    stage = getattr(model, "stage_2", getattr(model, "stage_1", model))
    return cast(VisionTransformer, getattr(stage, "backbone", stage))


def build_model(
    config: ModelConfig, num_classes: int, image_size: tuple[int, int], seed: int = 0, weights: bool = True
) -> AnyModel:
    """The model `config` names, new layers drawn from `seed`, backbones filled from `config.weights`.

    `weights=False` leaves the backbones random: for a model whose checkpoint is loaded next.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MODELS[config.name](config, num_classes, image_size)
    if weights:
        model.load_pretrained_backbones()
    return model
