"""Load a classifier to explain, by name or from a run folder, with its preprocessing and class names."""

import contextlib
import functools
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn

from common.errors import UserError
from common.plain_yaml import read_yaml
from explain.explained_model import check_explainable
from explain.huggingface_loading import huggingface_model
from explain.inputs import imagenet_names, num_classes, returning_logits
from explain.torchvision_models import Made, torchvision_model
from explain.vits import ReadableViT, embedding, has_classifier, patch_side, takes_any_size
from models.backbone import check_timm_name
from models.interface import ImageClassifier
from models.registry import model_class
from models.weights.checkpoints import load_into, read_state
from models.weights.huggingface import State

if TYPE_CHECKING:
    from datasets.types import DatasetInfo

Triple = tuple[float, float, float]
Crop = Literal["model", "center", "squash"]
"""model: as the model's evaluation does; center: resize to cover, centre crop; squash: the whole image, distorted."""


@dataclass(frozen=True)
class Classifier:
    """A model in eval mode, the preprocessing of its input, and its class names."""

    model: nn.Module
    mean: Triple
    std: Triple
    preprocess: Callable[[np.ndarray], Tensor]
    """[H, W, 3] uint8 RGB -> the network's input [3, h, w]."""
    preprocessing: str
    """The same in words."""
    class_names: list[str] | None = None
    """None if they are not known."""
    multi_label: bool = False
    """Whether an image may show several classes: probabilities are then sigmoids of the logits."""
    input_size: tuple[int, int] | None = None
    """(height, width) of the input of a model that is not of this project, pixels."""
    view: Mapping[str, Any] = field(default_factory=dict)
    """Of such a model: the preprocessing as a data config of timm."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the input, pixels."""
        return self.input_size or cast(ImageClassifier, self.model).input_size

    @property
    def has_classes(self) -> bool:
        """Whether the model classifies: False for a ViT without classifier (num_classes=0)."""
        return not isinstance(self.model, ReadableViT) or has_classifier(self.model)

    @functools.cached_property
    def num_classes(self) -> int:
        """Length of the logits; 0 without a classifier."""
        if not self.has_classes:
            return 0
        if count := num_classes(self.model):
            return count
        like = next(self.model.parameters())
        with torch.no_grad():
            return int(returning_logits(self.model)(like.new_zeros(1, 3, *self.size)).shape[1])

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits [..., C] -> probabilities [..., C], float32."""
        return logits.float().sigmoid() if self.multi_label else logits.float().softmax(-1)


def patch_size(model: nn.Module, image_size: tuple[int, int]) -> int:
    """Side of a patch of a ViT (`explain.vits`) or of a model of this project, pixels.

    Of another network: 32, the stride of most, or the largest power of two below it that divides (height, width).
    """
    if isinstance(model, ImageClassifier):
        return model.patch_size
    return patch_side(model)[0] if isinstance(model, ReadableViT) else math.gcd(32, *image_size)


@dataclass(frozen=True)
class Preprocessing:
    """What replaces a part of a timm model's own preprocessing; None: the model's own."""

    crop: Crop = "model"
    interpolation: str | None = None
    mean: Triple | None = None
    std: Triple | None = None

    def change(self, config: dict[str, Any]) -> None:
        """Change timm's data config in place."""
        if self.crop != "model":
            config["crop_mode"] = self.crop
        if self.crop == "squash":
            config["crop_pct"] = 1.0
        given = {"interpolation": self.interpolation, "mean": self.mean, "std": self.std}
        config.update({key: value for key, value in given.items() if value is not None})


def load_any(
    source: str, weights: str = "hub", size: tuple[int, int] | None = None,
    preprocessing: Preprocessing = Preprocessing(),
) -> Classifier:  # fmt: skip
    """The model `source`, timm/NAME, torchvision/NAME or hf/NAME, for inputs of `size` (height, width) pixels.

    `size` None: its own.

    `weights`: "hub" (the published ones), "none" (random), or a file with the model's names, classifier included. A
    ViT's positions are resampled to the size. Raises UserError if the model or the weights cannot be loaded.
    """
    place, _, name = source.partition("/")
    makers = {"timm": _from_timm, "torchvision": torchvision_model, "hf": huggingface_model}
    if place not in makers or not name:
        raise UserError(
            f"--model: {source!r}; write timm/NAME, torchvision/NAME or hf/NAME, or --run DIR for a folder of train.py"
        )
    from_file = weights not in ("hub", "none")
    if from_file and not Path(weights).is_file():
        raise UserError(f"--weights: no such file {weights}; give hub, none or a weights file")
    state = read_state(weights) if from_file else None
    model, config, names = makers[place](name, weights == "hub", size, state)
    if state is not None:
        load_into(model, _filtered(state, model, weights), weights)
    preprocessing.change(config)
    transform = create_transform(**config)
    return Classifier(
        model.eval(), config["mean"], config["std"], lambda pixels: cast(Tensor, transform(Image.fromarray(pixels))),
        _timm_words(config), names if weights != "none" else None,
        getattr(model, "multi_label", False), config["input_size"][1:], config,
    )  # fmt: skip


def _from_timm(name: str, pretrained: bool, size: tuple[int, int] | None, state: State | None) -> Made:
    """The model, timm's data config, and the names of ImageNet's classes if the model has them."""
    check_timm_name(name, "--model")
    settings: dict[str, Any] = {"img_size": size} if size else {}
    # Of some models several names. That of the default tag: `_create` reports a tag that does not exist.
    classifier = getattr(timm.get_pretrained_cfg(name.partition(".")[0]), "classifier", None)
    weight = f"{classifier if isinstance(classifier, str) else 'head'}.weight"
    if state is not None and weight in state and state[weight].ndim:
        settings["num_classes"] = len(state[weight])
    model = _create(name, pretrained, settings)
    config = resolve_model_data_config(model)
    if isinstance(model, ReadableViT):
        patch = patch_side(model)
        if size and any(side % step for side, step in zip(size, patch, strict=True)):
            why = f"is no multiple of the patch size {patch} (in evaluate.py: --data.image_size)"
            raise UserError(f"--size: {size[0]} {size[1]} {why}")
    if isinstance(model, ReadableViT) and not takes_any_size(model):
        grid = embedding(model).grid_size
        config["input_size"] = (3, grid[0] * patch[0], grid[1] * patch[1])
    elif size:
        config["input_size"] = (3, *size)
    return model, config, imagenet_names(model)


def _timm_words(config: Mapping[str, Any]) -> str:
    height, width = config["input_size"][1:]
    rows, columns = (math.floor(side / config["crop_pct"]) for side in (height, width))
    how = {
        "squash": f"resized to {rows} x {columns}",
        "border": f"long side resized to fit {rows} x {columns}, padded",
    }.get(config["crop_mode"], f"resized to cover {rows} x {columns}")
    cut = "" if (rows, columns) == (height, width) and config["crop_mode"] == "squash" else ", centre crop"
    scale = f"mean {_numbers(config['mean'])}, std {_numbers(config['std'])}"
    return f"{how} ({config['interpolation']}){cut}; {height} x {width} pixels; {scale}"


def _numbers(values: Triple) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def load_run(folder: Path, crop: Crop = "model") -> Classifier:
    """The best model of a run of train.py, with the run's evaluation transform and the class names, if they are known.
    Raises UserError for another folder.
    """
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
    view = {key: config["data"][key] for key in ("evaluation", "interpolation", "crop") if key in config["data"]}
    if crop != "model":
        view |= {"evaluation": "center_crop"} if crop == "center" else {"evaluation": "squash", "crop": 1.0}
    scale = f"mean {_numbers(mean)}, std {_numbers(std)}"
    shown = ", ".join(f"data.{key}={value}" for key, value in view.items())
    words = f"{shown}; {model.input_size[0]} x {model.input_size[1]} pixels; {scale}"
    names, multi_label = _run_classes(folder, model, config["data"])
    return Classifier(model, mean, std, _run_transform(model, view, mean, std), words, names, multi_label)


def _run_transform(
    model: ImageClassifier, view: Mapping[str, Any], mean: Triple, std: Triple
) -> Callable[[np.ndarray], Tensor]:
    from datasets.config import DataConfig  # slow to import, and not needed for timm's models
    from datasets.transforms import EvalTransform
    from datasets.types import RawSample

    config = DataConfig(image_size=model.input_size, mean=mean, std=std, **view)
    transform = EvalTransform(config)
    return lambda pixels: transform(RawSample(pixels, label=0, path="")).image


def _run_classes(folder: Path, model: ImageClassifier, data: Mapping[str, Any]) -> tuple[list[str] | None, bool]:
    """Class names, None if they are not known, and whether the labels are multi-label: as stored with the model.
    Earlier versions stored nothing: then those of the run's data set, if it is still there.
    """
    from datasets.trained_on import read_trained_on

    if stored := read_trained_on(folder / "best" / "config.json"):
        return list(stored.class_names), stored.multi_label
    info = _data_set(data)
    fits = info is not None and info.class_of_output is None and info.num_classes == model.num_outputs
    return (list(info.class_names), info.multi_label) if info and fits else (None, False)


def _data_set(data: Mapping[str, Any]) -> "DatasetInfo | None":
    """What is known of a run's data set; None if it is not found."""
    from datasets.config import DataConfig, SemiConfig, SyntheticConfig
    from datasets.registry import DATASETS

    try:
        flat: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
        nested: dict[str, Any] = {
            "semi": SemiConfig(**flat.pop("semi", {})),
            "synthetic": SyntheticConfig(**flat.pop("synthetic", {}) | {"test_images": 4}),  # drawn when opened
        }
        return DATASETS[flat["name"]](DataConfig(**flat, **nested), "test").info
    except (UserError, TypeError, KeyError, ValueError):  # moved, or a config of an older version
        return None


def _triple(values: Any) -> Triple:
    red, green, blue = values
    return float(red), float(green), float(blue)


def _filtered(state: State, model: nn.Module, weights: str) -> State:
    """The names and positions that timm's model has. Raises UserError where timm stumbles over the state dict."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        return cast(State, convert(state, model))
    except Exception as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise UserError(f"--weights: {weights} holds no weights of this model ({what})") from None


def _create(name: str, pretrained: bool, settings: dict[str, Any]) -> nn.Module:
    try:
        return timm.create_model(name, pretrained=pretrained, **settings)
    except Exception as error:  # timm and the hub raise many kinds: offline, no such tag, no such option
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "img_size" in settings and "img_size" in reason:  # a CNN takes images of any size
            return _create(name, pretrained, {key: value for key, value in settings.items() if key != "img_size"})
        raise UserError(f"--model: timm cannot make {name!r} ({reason}); or give --weights FILE or none") from None
