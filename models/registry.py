"""Models by name, and how one is built with reproducible fresh layers."""

from collections.abc import Callable

import torch

from common.registry import Registry
from models.baseline import PlainViT
from models.config import ModelConfig
from models.two_stage import TwoStageModel

AnyModel = TwoStageModel | PlainViT
MODELS: Registry[Callable[[ModelConfig, int, tuple[int, int]], AnyModel]] = Registry("model (--model.name)")
MODELS.register("two_stage")(TwoStageModel)
MODELS.register("vit")(PlainViT)


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
