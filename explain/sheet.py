"""What `python -m explain` draws: the columns of one contact sheet. The one file here that needs `report`."""

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
from report.overlays import denormalise, heat_overlay, mask_view, part_overlay, resize
from report.sheets import Column, LegendEntry, part_legend

TILE = 252
"""Pixels of an image's shorter side on the sheet; a multiple of the usual patch grids 12, 14 and 28."""


@dataclass(frozen=True)
class Show:
    """One sheet: who is explained, how, and for which classes."""

    classifier: Classifier
    methods: Mapping[str, Explainer]
    names: Sequence[str]
    targets: Sequence[int]
    """Classes to explain; none: each image's predicted class."""
    stage: Literal[1, 2]

    def columns(self, path: Path, image: Tensor) -> list[Column]:
        """One column per target. Prints the prediction for image [3, H, W]."""
        model, x = self.classifier.model, image[None]
        explained = explained_model(model, x, self.stage)
        for method in self.methods.values():
            method.check(explained)
        with torch.no_grad():
            probability = explained.logits(x)[0].softmax(0)
        predicted = int(probability.argmax())
        print(f"{self.names[predicted]}  {probability[predicted]:.3f}  {path}")
        targets = list(self.targets) or [predicted]
        pixels = self._image(image)
        shared = [pixels, *self._parts(pixels, x)]
        heat = [self._heat(name, pixels, x, targets, path) for name in self.methods]
        return [
            Column([*shared, *(row[i] for row in heat)], path.name, f"{self.names[t]} {float(probability[t]):.1%}")
            for i, t in enumerate(targets)
        ]

    def row_titles(self) -> list[str]:
        """What the tiles of a column are."""
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

    def _image(self, image: Tensor) -> np.ndarray:
        height, width = image.shape[-2:]
        scale = TILE / min(height, width)
        pixels = denormalise(image, self.classifier.mean, self.classifier.std)
        return resize(pixels, (round(height * scale), round(width * scale)))

    def _parts(self, pixels: np.ndarray, x: Tensor) -> list[np.ndarray]:
        if not is_two_stage(self.classifier.model):
            return []
        selection = select_parts(self.classifier.model, x).selection
        assert selection.maps is not None
        maps, mask = selection.maps[0], selection.mask[0]
        return [part_overlay(pixels, maps, mask), mask_view(pixels, mask), heat_overlay(pixels, 1 - maps[-1])]

    def _heat(self, name: str, pixels: np.ndarray, x: Tensor, targets: list[int], path: Path) -> list[np.ndarray]:
        """One overlay per target."""
        method = self.methods[name]
        classes = torch.tensor(targets if method.class_specific else targets[:1], device=x.device)
        maps = explain(self.classifier.model, x.expand(len(classes), -1, -1, -1), method, classes, stage=self.stage)
        if method.resolution == "pixel":  # what speaks for the class; the root, as a few pixels outshine all others
            maps = maps.relu().sqrt()
        unit, flat = minmax(to_pixels(maps, pixels.shape[:2]))
        for target in classes[flat].tolist():
            print(f"note: {name} gives {path} an empty map for {self.names[target]}", file=sys.stderr)
        return [heat_overlay(pixels, heat) for heat in unit.expand(len(targets), -1, -1)]
