"""A model that the demo shows: a run or a pretrained classifier, with the examples of its test split."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from common.errors import UserError, printable
from datasets import Split
from datasets.formats.images import read_image
from engine.evaluation.loading import read_split
from engine.run.folder import run_config
from explain.explained_model import evaluated
from explain.loading import Classifier, load_any, load_run
from models.interface import Stage, finds_parts, is_two_stage, selects_patches
from models.two_stage import TwoStageModel


@dataclass(frozen=True)
class Subject:
    """A classifier in eval mode, its name, and images it can be shown with. Threads take turns in `alone`."""

    name: str
    classifier: Classifier
    class_names: tuple[str, ...]
    run: Path | None = None
    """The run folder; None for a pretrained classifier."""
    opened: str = ""
    """The call that opens it, in Python."""
    split: Split | None = None
    """The run's test split, if it is at hand."""

    @property
    def model(self) -> nn.Module:
        """The network."""
        return self.classifier.model

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def two_stage(self) -> TwoStageModel | None:
        """The model, if its parts can be edited."""
        return self.model if isinstance(self.model, TwoStageModel) else None

    @property
    def parts(self) -> int:
        """K, the number of parts; 0 for a model without."""
        return self.model.model_config.parts.num_parts if finds_parts(self.model) else 0

    @property
    def selects(self) -> bool:
        """Whether it classifies from selected patches alone, so that these can be changed."""
        return selects_patches(self.model)

    @property
    def stage(self) -> Stage:
        """The stage that is explained: the last one."""
        return 1 if finds_parts(self.model) and not is_two_stage(self.model) else 2

    @property
    def limits(self) -> str:
        """What this model cannot offer, in one sentence; empty if it offers everything."""
        if self.selects:
            return "" if self.parts else f"{self.name} selects patches by a fixed rule and has no parts to remove."
        what = "finds parts, but" if self.parts else "has no mask:"
        return (
            f"{self.name} {what} its prediction depends on every pixel. There is nothing to take away and nothing to "
            "prove; explanations only rank patches, whether or not the prediction depends on them."
        )

    def read(self, file: Path | str) -> Tensor:
        """An image file as input of the network, [3, H, W]. Raises UnreadableImageError."""
        return self.classifier.preprocess(read_image(file)).to(self.device)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Without gradients, and while no other thread computes or explains with this model."""
        with evaluated(self.model), torch.no_grad():
            yield


def open_run(folder: Path, device: torch.device, overrides: Sequence[str] = (), examples: bool = True) -> Subject:
    """The best model of a run, with its test split if `examples`. Raises UserError.

    `overrides`: flags of `data.*` that say where the split's files are.
    """
    classifier = load_run(folder)
    split = read_split(run_config(folder, overrides), "test", None, folder) if examples else None
    classifier.model.to(device)
    data = f", overrides={list(overrides)!r}" if overrides and examples else ""
    opened = f"open_run(Path({str(folder)!r}), torch.device({str(device)!r}){data})"
    return Subject(printable(folder.name), classifier, _names(classifier), folder, opened, split)


def open_model(source: str, weights: str, device: torch.device) -> Subject:
    """The pretrained classifier timm/NAME, torchvision/NAME or hf/NAME. Raises UserError."""
    classifier = load_any(source, weights)
    if not classifier.has_classes:
        raise UserError(
            f"--model: {source} has no classifier, so there is no prediction to show; use python -m explain"
        )
    classifier.model.to(device)
    opened = f"open_model({source!r}, {weights!r}, torch.device({str(device)!r}))"
    return Subject(printable(source), classifier, _names(classifier), None, opened)


def _names(classifier: Classifier) -> tuple[str, ...]:
    names = classifier.class_names or [f"class {index}" for index in range(classifier.num_classes)]
    return tuple(map(printable, names))
