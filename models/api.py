"""What `from models import ...` gives. Import names from there."""

from models.baseline import PlainViT
from models.outputs import TwoStageOutput
from models.registry import MODELS, build_model
from models.selected_vit import SelectedViT
from models.two_stage import TwoStageModel

__all__ = [
    "MODELS", "PlainViT", "SelectedViT", "TwoStageModel", "TwoStageOutput", "build_model",
]  # fmt: skip
