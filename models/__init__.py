"""Models: backbones, stage 1 (part discovery), stage 2 (masked ViT), the two-stage model, and baselines."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from models.config import ModelConfig, PartsConfig

if TYPE_CHECKING:
    from models.api import (
        MODELS,
        PlainViT,
        SelectedViT,
        TwoStageModel,
        TwoStageOutput,
        build_model,
    )  # fmt: skip

__all__ = [
    "MODELS", "ModelConfig", "PartsConfig", "PlainViT", "SelectedViT", "TwoStageModel", "TwoStageOutput", "build_model",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import torch and timm when one of the others is first used, so that `train.py --help` is fast."""
    if name in __all__:
        return getattr(import_module("models.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
