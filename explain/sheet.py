"""The contact sheet that `python -m explain` draws. The only file of this package that needs `report`."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from common.maps import minmax, to_pixels
from explain import Explainer, explain, explained_model
from explain.loading import Classifier
from models.interface import is_two_stage, select_parts
from report.legend import LegendEntry, part_legend
from report.overlays import denormalise, heat_overlay, mask_view, part_overlay, resize_shorter
from report.sheets import Column

TILE = 252
"""Shorter side of an image on the sheet, pixels; a multiple of the usual patch grids 12, 14 and 28."""


@dataclass(frozen=True)
class ExplanationSheet:
    """What one sheet shows: a classifier, the methods that explain it, and the classes to explain."""

    classifier: Classifier
    methods: Mapping[str, Explainer]
    names: Sequence[str]
    """Class names."""
    targets: Sequence[int]
    """Classes to explain; empty: each image's predicted class."""
    stage: Literal[1, 2]

    def columns(self, path: Path, image: Tensor) -> list[Column]:
        """One column per target class of the image [3, H, W]. Prints the prediction."""
        model, images = self.classifier.model, image[None]
        explained = explained_model(model, images, self.stage)
        for method in self.methods.values():
            method.check(explained)
        with torch.no_grad():
            probability = explained.logits(images)[0].softmax(0)
        predicted = int(probability.argmax())
        print(f"{self.names[predicted]}  {probability[predicted]:.3f}  {path}")
        targets = list(self.targets) or [predicted]
        pixels = resize_shorter(denormalise(image, self.classifier.mean, self.classifier.std), TILE)
        shared = [pixels, *self._parts(pixels, images)]
        heat = [self._heat(name, pixels, images, targets, path) for name in self.methods]
        return [
            Column([*shared, *(row[i] for row in heat)], path.name, f"{self.names[t]} {float(probability[t]):.1%}")
            for i, t in enumerate(targets)
        ]

    def row_titles(self) -> list[str]:
        """Titles of the tiles in each column."""
        two_stage = is_two_stage(self.classifier.model)
        parts = ["parts", "what stage 2\nsees", "foreground"] if two_stage else []
        methods = [
            name.replace("_", " ") + ("" if method.class_specific or len(self.targets) < 2 else "\n(any class)")
            for name, method in self.methods.items()
        ]
        return ["image", *parts, *methods]

    def legend(self) -> list[LegendEntry]:
        """The colours of the parts."""
        model = self.classifier.model
        parts = model.model_config.parts.num_parts if is_two_stage(model) else 0
        return part_legend(parts)

    def _parts(self, pixels: np.ndarray, images: Tensor) -> list[np.ndarray]:
        if not is_two_stage(self.classifier.model):
            return []
        selection = select_parts(self.classifier.model, images).selection
        assert selection.maps is not None
        maps, mask = selection.maps[0], selection.visible[0]
        return [part_overlay(pixels, maps, mask), mask_view(pixels, mask), heat_overlay(pixels, 1 - maps[-1])]

    def _heat(self, name: str, pixels: np.ndarray, images: Tensor, targets: list[int], path: Path) -> list[np.ndarray]:
        """One overlay per target, from one batch of copies of the image [1, 3, H, W]."""
        method = self.methods[name]
        classes = torch.tensor(targets if method.class_specific else targets[:1], device=images.device)
        copies = images.expand(len(classes), -1, -1, -1)
        maps = explain(self.classifier.model, copies, method, classes, stage=self.stage)
        if method.resolution == "pixel":  # positive evidence only; the square root, as a few pixels dominate
            maps = maps.relu().sqrt()
        unit, flat = minmax(to_pixels(maps, pixels.shape[:2]))
        for target in classes[flat].tolist():
            print(f"note: {name} gives {path} an empty map for {self.names[target]}", file=sys.stderr)
        return [heat_overlay(pixels, heat) for heat in unit.expand(len(targets), -1, -1)]
