"""Load a classifier to explain, by timm name or from a run folder, with the size and normalisation of its input."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import timm
from timm.data import resolve_model_data_config
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import nn

from common.errors import UserError
from common.plain_yaml import read_yaml
from explain.explained_model import check_explainable
from models.backbone import check_timm_name
from models.interface import ImageClassifier
from models.registry import model_class
from models.weights.checkpoints import load_into, read_state
from models.weights.huggingface import State

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Classifier:
    """A model in eval mode, and the normalisation of its input."""

    model: VisionTransformer | ImageClassifier
    mean: Triple
    std: Triple

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the input, pixels."""
        if isinstance(self.model, ImageClassifier):
            return self.model.input_size
        (rows, columns), (height, width) = self.model.patch_embed.grid_size, self.model.patch_embed.patch_size
        return rows * height, columns * width

    @property
    def num_classes(self) -> int:
        """Length of the logits."""
        if isinstance(self.model, ImageClassifier):
            return self.model.num_outputs
        return self.model.head.out_features if isinstance(self.model.head, nn.Linear) else 0


def patch_size(model: nn.Module) -> int:
    """Side of a patch of a timm ViT or of a model of this project, pixels."""
    if isinstance(model, ImageClassifier):
        return model.patch_size
    return int(cast(VisionTransformer, model).patch_embed.patch_size[0])


def load_timm(name: str, weights: str = "hub", size: tuple[int, int] | None = None) -> Classifier:
    """timm's ViT `name`, for inputs of `size` (height, width) pixels; None: its default size.

    `weights`: "hub" (timm's download), "none" (random), or a file with timm's names, classifier included. Positions are
    resampled to the size. Raises UserError if the model or the weights cannot be loaded.
    """
    check_timm_name(name, "--model")
    settings: dict[str, Any] = {"img_size": size} if size else {}
    from_file = weights not in ("hub", "none")
    if from_file and not Path(weights).is_file():
        raise UserError(f"--weights: no such file {weights}; give hub, none or a weights file")
    state = read_state(weights) if from_file else None
    if state is not None and "head.weight" in state and state["head.weight"].ndim:
        settings["num_classes"] = len(state["head.weight"])
    model = _create(name, weights == "hub", settings)
    if size and any(side % patch for side, patch in zip(size, model.patch_embed.patch_size, strict=True)):
        why = f"is no multiple of the patch size {model.patch_embed.patch_size} (in evaluate.py: --data.image_size)"
        raise UserError(f"--size: {size[0]} {size[1]} {why}")
    if state is not None:
        load_into(model, _filtered(state, model, weights), weights)
    config = resolve_model_data_config(model)
    return Classifier(model.eval(), config["mean"], config["std"])


def load_run(folder: Path) -> Classifier:
    """The best model of a run of train.py, with the run's normalisation. Raises UserError for another folder."""
    file = folder / "config.yaml"
    if not file.is_file():
        raise UserError(f"--run: {folder} is not a run of train.py: it has no config.yaml")
    config = read_yaml(file)
    try:
        name, mean, std = str(config["model"]["name"]), _triple(config["data"]["mean"]), _triple(config["data"]["std"])
    except (KeyError, TypeError, ValueError, OverflowError):
        raise UserError(f"--run: {file} is no config of train.py; choose another folder") from None
    kind = model_class(name, str(config["model"].get("selector", "parts")))
    if not (folder / "best" / "model.safetensors").is_file():
        raise UserError(f"--run: {folder} has no best/model.safetensors yet; train it for at least one epoch")
    with contextlib.redirect_stdout(None):  # huggingface_hub says there what it does
        model = kind.from_pretrained(folder / "best")
    check_explainable(model)
    return Classifier(model, mean, std)


def _triple(values: Any) -> Triple:
    red, green, blue = values
    return float(red), float(green), float(blue)


def _filtered(state: State, model: VisionTransformer, weights: str) -> State:
    """The names and positions that timm's model has. Raises UserError where timm stumbles over the state dict."""
    try:
        return checkpoint_filter_fn(state, model)
    except Exception as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise UserError(f"--weights: {weights} holds no weights of this model ({what})") from None


def _create(name: str, pretrained: bool, settings: dict[str, Any]) -> VisionTransformer:
    try:
        model = timm.create_model(name, pretrained=pretrained, **settings)
    except Exception as error:  # timm and the hub raise many kinds: offline, no such tag, not a ViT
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"--model: timm cannot make {name!r} ({reason}); or give --weights FILE or none") from None
    if not isinstance(model, VisionTransformer):
        raise UserError(f"--model: {name!r} is a {type(model).__name__}, not a timm VisionTransformer")
    return model
