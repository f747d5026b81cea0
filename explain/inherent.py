"""The maps that a two-stage model computes itself: its mask and part maps, which decide what stage 2 sees.

Aniraj, Dantas, Ienco and Marcos, "Inherently Faithful Attention Maps for Vision Transformers", 2025. With part maps
p_k, the last of which is the background:

    map = mask * sum over parts of p_k
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, cast

from torch import Tensor
from torch.nn import functional as F

from common.errors import UserError
from explain.explained_model import ExplainedModel
from explain.types import METHODS, Explainer
from models.interface import ImageClassifier, finds_parts, select_parts


@METHODS.register("inherent")
@dataclass(frozen=True)
class Inherent(Explainer):
    """The foreground probability of the patches that stage 2 sees, 0 elsewhere; the same for both stages."""

    what: Literal["selected", "mask", "foreground", "part"] = "selected"
    """selected: mask times foreground probability. mask: 0 or 1. foreground: the probability of all patches. part: the
    probability of one part."""
    part: int = 0
    """The part for what=part, from 0."""

    class_specific: ClassVar[bool] = False
    keeps_graph: ClassVar[bool] = True

    def check(self, explained: ExplainedModel) -> None:
        """Raise UserError if the model has no parts, or not this one."""
        if not finds_parts(explained.module):
            kind = type(explained.module).__name__
            raise UserError(f"--method: inherent needs a two-stage model; this {kind} has no parts")
        parts = explained.module.model_config.parts.num_parts
        if not 0 <= self.part < parts:
            raise UserError(f"--part: {self.part}; the model has parts 0 to {parts - 1}")
        if self.what != "mask" and explained.selection is not None and explained.selection.maps is None:
            raise UserError(f"--what: {self.what} needs part maps, but the model was given a mask only; use mask")

    def maps(self, explained: ExplainedModel, images: Tensor, targets: Tensor | None) -> Tensor:
        """See `Explainer.maps`; class-agnostic, so `targets` is unused."""
        selection = explained.selection or select_parts(cast(ImageClassifier, explained.module), images).selection
        if self.what == "mask" or selection.maps is None:
            return selection.mask.float()
        if self.what == "part":
            return selection.maps[:, self.part]
        foreground = selection.maps[:, :-1].sum(1)  # [B, K + 1, h, w], background last
        if self.what == "foreground":
            return foreground
        if foreground.shape != selection.mask.shape:  # stage 1 has a patch grid of its own
            size = selection.mask.shape[1:]
            foreground = F.interpolate(foreground[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
        return foreground * selection.mask
