"""Models: backbones, stage 1 (part discovery), stage 2 (masked ViT), the two-stage model, and baselines."""

from models.baseline import PlainViT
from models.config import ModelConfig, PartsConfig
from models.outputs import TwoStageOutput
from models.registry import MODELS, build_model
from models.selected_vit import SelectedViT
from models.two_stage import TwoStageModel

__all__ = [
    "MODELS", "ModelConfig", "PartsConfig", "PlainViT", "SelectedViT", "TwoStageModel", "TwoStageOutput", "build_model",
]  # fmt: skip
