"""The models by name, and `build_model`."""

import torch

from common.errors import UserError
from common.registry import Registry
from models.baseline import PlainViT
from models.cnn import Cnn
from models.config import ModelConfig
from models.given_mask import DecoupledViT, LateMaskingViT
from models.interface import ImageClassifier
from models.pdiscoformer import PDiscoFormer
from models.selected_vit import SelectedViT
from models.two_stage import TwoStageModel

MODELS: Registry[type[ImageClassifier]] = Registry("model (--model.name)")
MODELS.register("two_stage")(TwoStageModel)
MODELS.register("vit")(PlainViT)
MODELS.register("decoupled")(DecoupledViT)
MODELS.register("late_masking")(LateMaskingViT)
MODELS.register("pdiscoformer")(PDiscoFormer)
MODELS.register("cnn")(Cnn)


def model_class(name: str, selector: str = "parts") -> type[ImageClassifier]:
    """The class of a model with `model.name` and `model.selector`. Raises UserError."""
    kind = MODELS[name]
    if selector == "parts":
        return kind
    if kind is not TwoStageModel:
        raise UserError(
            f"model.selector={selector} replaces stage 1 of model.name=two_stage; model.name={name} has none"
        )
    return SelectedViT


def build_model(
    config: ModelConfig, num_classes: int, image_size: tuple[int, int], seed: int = 0, weights: bool = True
) -> ImageClassifier:
    """Build the model `config.name` with new layers drawn from `seed` and backbones loaded from `config.weights`.

    `weights=False` leaves the backbones random, for a checkpoint to be loaded next. Raises UserError.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config.name, config.selector)(config, num_classes, image_size)
    if weights:
        model.load_pretrained_backbones()
    return model
