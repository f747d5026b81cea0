"""Small classifiers in double precision, so that parity tests show any error in a formula."""

from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from explain.explained_model import ExplainedModel
from models.two_stage import TwoStageModel
from tests.models.small import config, shaken

CLASSES = 5


def classifier(**settings: Any) -> VisionTransformer:
    torch.manual_seed(0)  # some biases stay as torch draws them
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "mlp_ratio": 2}
    vit = shaken(VisionTransformer(**{**sizes, "num_classes": CLASSES} | settings))
    assert isinstance(vit, VisionTransformer)
    return vit.double().eval()


def two_stage(**changes: Any) -> TwoStageModel:
    """In single precision, like its part head. Its mask on `images` is neither empty nor full."""
    torch.manual_seed(0)
    model = shaken(TwoStageModel(config(**changes), CLASSES, (32, 32)))
    assert isinstance(model, TwoStageModel)
    return model.eval()


def images(batch: int = 3, size: tuple[int, int] = (32, 32)) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def bare(module: nn.Module) -> ExplainedModel:
    """A classifier that is no ViT, for methods that differentiate only."""
    return ExplainedModel(module, classifier(), module, "class_token")


def hooks(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())
