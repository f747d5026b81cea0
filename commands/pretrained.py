"""`--model NAME` in place of `--run DIR`: a classifier of timm, torchvision or Hugging Face under evaluation."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from commands.run_context import RunContext
from common.errors import UserError
from datasets.types import DatasetInfo
from engine.run.command_line import parse_config
from engine.run.config import RunConfig
from engine.run.machine import prepare_process
from explain.inputs import returning_logits
from explain.loading import Classifier, load_any
from models.backbone import check_timm_name
from models.outputs import ClassifierOutput
from report.files import check_folder

T = TypeVar("T")
PLACES = ("timm", "torchvision", "hf")


class PretrainedClassifier(nn.Module):
    """A network that returns logits [B, C], with the output of a model of this project."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> ClassifierOutput:
        """Normalised images [B, 3, H, W] -> ClassifierOutput."""
        return ClassifierOutput(returning_logits(self.network)(images))


def open_pretrained(
    args: argparse.Namespace, overrides: list[str], folder: str, read: Callable[[RunConfig], T]
) -> tuple[RunContext, T, Classifier]:
    """The model `--model` with `--weights`, with the image size and preprocessing that it was made for, and its data.

    `folder`: output folder below runs/NAME, used without --out. `read`: reads the data. Raises UserError.
    """
    out = check_folder(args.out or Path("runs") / args.model / folder, "--out")
    place, _, name = args.model.partition("/")
    if place not in PLACES or not name:
        known = ", ".join(f"{place}/NAME" for place in PLACES[:-1])
        raise UserError(f"--model: {args.model!r}; write {known} or hf/NAME, or --run DIR for a folder of train.py")
    if place == "timm":
        check_timm_name(name, "--model")
    given = parse_config(overrides)
    if given.data.name != "synthetic":  # which has no files that could be missing, and takes seconds to draw
        read(given)  # before a download, which may take minutes
    weights = args.weights or "hub"
    sized = any(flag.partition("=")[0] == "--data.image_size" for flag in overrides)
    found = load_any(args.model, weights, given.data.size_hw if sized else None)
    # timm's preprocessing follows from the name of the backbone
    own = [f"--model.backbone={name}"] if place == "timm" else view_flags(found.view)
    config = parse_config([f"--data.image_size={list(found.size)}", *own, *overrides])
    data, device = read(config), prepare_process(config)
    found.model.to(device)
    return RunContext(Path(args.model), weights, config, device, out), data, found


def check_classes(found: Classifier, name: str, info: DatasetInfo) -> None:
    """Raise UserError unless the model `name` has as many classes as the data set has outputs."""
    if info.num_outputs != found.num_classes:
        raise UserError(
            f"--model: {name.partition('/')[2]} has {found.num_classes} classes, data set {info.name} has "
            f"{info.num_outputs}; give --weights FILE with a classifier for it, or evaluate a --run"
        )


def view_flags(view: Mapping[str, Any]) -> list[str]:
    """Flags of `data.*` for the preprocessing `view`, a data config of timm."""
    squash = view["crop_mode"] == "squash"
    return [
        f"--data.mean={list(view['mean'])}", f"--data.std={list(view['std'])}", f"--data.crop={view['crop_pct']}",
        f"--data.interpolation={'bilinear' if view['interpolation'] == 'bilinear' else 'bicubic'}",
        f"--data.evaluation={'squash' if squash else 'center_crop'}",
    ]  # fmt: skip
