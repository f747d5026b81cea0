"""The models by name, and `build_model`."""

import torch

from common.registry import Registry
from models.baseline import PlainViT
from models.cnn import Cnn
from models.config import ModelConfig
from models.given_mask import DecoupledViT, LateMaskingViT
from models.interface import ImageClassifier
from models.pdiscoformer import PDiscoFormer
from models.two_stage import TwoStageModel

MODELS: Registry[type[ImageClassifier]] = Registry("model (--model.name)")
MODELS.register("two_stage")(TwoStageModel)
MODELS.register("vit")(PlainViT)
MODELS.register("decoupled")(DecoupledViT)
MODELS.register("late_masking")(LateMaskingViT)
MODELS.register("pdiscoformer")(PDiscoFormer)
MODELS.register("cnn")(Cnn)


def build_model(
    config: ModelConfig, num_classes: int, image_size: tuple[int, int], seed: int = 0, weights: bool = True
) -> ImageClassifier:
    """Build the model `config.name` with new layers drawn from `seed` and backbones loaded from `config.weights`.

    `weights=False` leaves the backbones random, for a checkpoint to be loaded next. Raises UserError.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MODELS[config.name](config, num_classes, image_size)
    if weights:
        model.load_pretrained_backbones()
    return model
