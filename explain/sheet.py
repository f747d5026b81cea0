"""What `python -m explain` shows: the maps of every image, and their contact sheet. Only this file needs `report`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.maps import minmax, to_pixels
from explain import Explainer, explain
from explain.explained_model import ExplainedModel, explained_model
from explain.loading import Classifier
from explain.types import check_method
from models.interface import is_two_stage, select_parts
from report.legend import SCALED_ALONE, LegendEntry, part_legend
from report.overlays import denormalise, heat_overlay, mask_view, part_overlay, resize_shorter
from report.sheets import Column, contact_sheet
from report.style import HIDDEN

TILE = 252
"""Shorter side of an image on the sheet, pixels; a multiple of the usual patch grids 12, 14 and 28."""


@dataclass(frozen=True)
class ExplainedImage:
    """One image, its prediction, and the maps of its target classes."""

    path: Path
    pixels: np.ndarray
    """[H, W, 3] uint8, what the network sees, with the shorter side at `TILE`."""
    probability: Tensor
    """[C]; empty without a classifier."""
    targets: list[int]
    """[0] without a classifier."""
    shared: list[np.ndarray]
    """Tiles of a two-stage model's parts, mask and foreground."""
    maps: Mapping[str, Tensor]
    """Method -> [T, h, w], as `explain` returns them: one per target, or a single one if they do not depend on it."""

    @property
    def predicted(self) -> int | None:
        """None without a classifier."""
        return int(self.probability.argmax()) if len(self.probability) else None


@dataclass(frozen=True)
class ExplanationSheet:
    """What one sheet shows: a classifier, the methods that explain it, and the classes to explain."""

    classifier: Classifier
    methods: dict[str, Explainer]
    names: Sequence[str]
    """Class names."""
    targets: Sequence[int]
    """Classes to explain; empty: each image's predicted class."""
    stage: Literal[1, 2]
    same_scale: bool = False
    """One scale for all maps of a method, instead of one for each map."""
    other: tuple[str, Tensor] | None = None
    """Of a model without classifier: name and pixels [3, H, W] of an image; the similarity of features is explained."""

    def leave_out_unable(self, image: Tensor) -> list[str]:
        """Drop the methods that cannot explain the model, and return why. `image`: [3, H, W], any."""
        explained, problems = explained_model(self.classifier.model, image[None], self.stage), {}
        for name, method in self.methods.items():
            try:
                check_method(method, explained, scored=bool(self.targets or self.other))
            except UserError as error:
                problems[name] = f"{name} is left out: {error}"
        for name in problems:
            del self.methods[name]
        return list(problems.values())

    def explain(self, path: Path, image: Tensor, start: Callable[[str], object] = str) -> ExplainedImage:
        """Explain the image [3, H, W]; `start` is called before each method. Raises UserError."""
        model, images = self.classifier.model, image[None]
        explained = explained_model(model, images, self.stage)
        for method in self.methods.values():
            check_method(method, explained, scored=bool(self.targets or self.other))
        probability = torch.zeros(0)
        if explained.has_classes:
            with torch.no_grad():
                probability = self.classifier.probabilities(explained.logits(images)[0]).cpu()
        if not probability.isfinite().all():
            raise UserError(f"{path}: the model's logits are not finite; use other weights")
        targets = list(self.targets) or [int(probability.argmax()) if len(probability) else 0]
        pixels = resize_shorter(denormalise(image, self.classifier.mean, self.classifier.std), TILE)
        maps = {}
        for name, method in self.methods.items():
            start(f"{_words(name)}: {path.name}")
            classes = targets if method.class_specific else targets[:1]
            copies = images.expand(len(classes), -1, -1, -1)
            chosen = classes if explained.has_classes or self.targets else None
            wanted = chosen if self.other is None else self.other[1][None]
            shown = explained.selection and explained.selection.part([0] * len(classes))
            maps[name] = explain(model, copies, method, wanted, stage=self.stage, selection=shown).cpu()
        return ExplainedImage(path, pixels, probability, targets, self._parts(pixels, images, explained), maps)

    def notes(self, image: ExplainedImage) -> list[str]:
        """A line for each map without any variation."""
        return [
            f"note: {name} gives {image.path} an empty map" + (f" for {self.names[target]}" if self.names else "")
            for name, maps in image.maps.items()
            for target, empty in zip(
                image.targets, minmax(for_display(self.methods[name], maps))[1].tolist(), strict=False
            )
            if empty
        ]

    def write(self, images: Sequence[ExplainedImage], out: Path) -> Path:
        """Draw the sheet: one column per image and target, one row per method."""
        limits = self._limits(images)
        columns = [column for image in images for column in self._columns(image, limits)]
        notes = self._notes(limits)
        return contact_sheet(columns, self._row_titles(), out, legend=self._legend(), notes=notes, heat=True)

    def _columns(self, image: ExplainedImage, limits: Mapping[str, tuple[float, float]]) -> list[Column]:
        columns, predicted = [], "no classifier"
        if image.predicted is not None:
            predicted = f"predicted: {self._with_probability(image, image.predicted)}"
        for i, target in enumerate(image.targets):
            tiles = [image.pixels, *image.shared]
            for name, maps in image.maps.items():
                heat = for_display(self.methods[name], maps[min(i, len(maps) - 1)][None])
                heat = to_pixels(heat.nan_to_num(0, 0, 0), image.pixels.shape[:2])
                tiles.append(heat_overlay(image.pixels, heat[0], limits=limits.get(name)))
            columns.append(Column(tiles, image.path.name, self._explained(image, target) + predicted))
        return columns

    def _explained(self, image: ExplainedImage, target: int) -> str:
        """A line for the target, where it is not the predicted class."""
        if self.other is not None:
            return f"explained: similarity to {self.other[0]}\n"
        if image.predicted is None:
            return f"explained: feature {target}\n" if self.targets else ""
        return "" if image.predicted == target else f"explained: {self._with_probability(image, target)}\n"

    def _with_probability(self, image: ExplainedImage, target: int) -> str:
        return f"{self.names[target]} {float(image.probability[target]):.1%}"

    def _limits(self, images: Sequence[ExplainedImage]) -> dict[str, tuple[float, float]]:
        """The lowest and highest value of each method's maps, with `same_scale`."""
        if not self.same_scale:
            return {}
        limits = {}
        for name in self.methods:
            shown = [for_display(self.methods[name], image.maps[name]) for image in images]
            values = torch.cat([maps.nan_to_num(0, 0, 0).flatten() for maps in shown])
            limits[name] = float(values.min()), float(values.max())
        return limits

    def _row_titles(self) -> list[str]:
        parts = ["parts", "what stage 2\nsees", "foreground"] if is_two_stage(self.classifier.model) else []
        methods = [
            _words(name) + ("" if method.class_specific or len(self.targets) < 2 else "\n(any class)")
            for name, method in self.methods.items()
        ]
        return ["image", *parts, *methods]

    def _parts(self, pixels: np.ndarray, images: Tensor, explained: ExplainedModel) -> list[np.ndarray]:
        if not is_two_stage(self.classifier.model):
            return []
        selection = explained.selection or select_parts(self.classifier.model, images).selection
        assert selection.maps is not None
        maps, mask = selection.maps[0], selection.visible[0]
        return [part_overlay(pixels, maps, mask), mask_view(pixels, mask), heat_overlay(pixels, 1 - maps[-1])]

    def _legend(self) -> list[LegendEntry]:
        model = self.classifier.model
        if not is_two_stage(model):
            return []
        return [*part_legend(model.model_config.parts.num_parts), LegendEntry(HIDDEN, "hidden from stage 2")]

    def _notes(self, limits: Mapping[str, tuple[float, float]]) -> list[str]:
        lines = [SCALED_ALONE]
        if limits:
            ranges = ", ".join(f"{_words(name)} {low:.3g} to {high:.3g}" for name, (low, high) in limits.items())
            lines = [f"All maps of a method have one scale: {ranges}."]
        pixels = [_words(name) for name, method in self.methods.items() if method.resolution == "pixel"]
        if pixels:
            lines.append(f"{', '.join(pixels)}: square root of the positive values.")
        if len(self.targets) > 1 and not all(method.class_specific for method in self.methods.values()):
            lines.append("(any class): the map does not depend on the class.")
        if is_two_stage(self.classifier.model):
            lines.append("parts: the strongest part of each patch; foreground: 1 - background, on its own scale.")
        return [*lines, f"Input: {self.classifier.preprocessing}."]


def for_display(method: Explainer, maps: Tensor) -> Tensor:
    """Of maps at pixels, positive evidence only, and the square root, because a few pixels dominate."""
    return maps.relu().sqrt() if method.resolution == "pixel" else maps


def _words(name: str) -> str:
    return name.replace("_", " ")
