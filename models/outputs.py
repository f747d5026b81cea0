"""What models return for a batch. All outputs have the fields of `ModelOutput`; None: does not apply.

Shape legend: B images, C classes, D width, K parts (the last of K+1 channels is background), h x w patch grid.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol, cast

from torch import Tensor

from models.selection import Selection


class ModelOutput(Protocol):
    """What training and evaluation read from the output of any model."""

    @property
    def logits(self) -> Tensor:
        """[B, C]: the final classification."""

    @property
    def stage_1_logits(self) -> Tensor | None:
        """[B, C]: stage 1's own classification, if there is a second stage."""

    @property
    def mask(self) -> Tensor | None:
        """[B, h, w] bool: the patches that the classifier saw, or (model with parts only) those assigned to a part."""

    @property
    def pixels(self) -> Tensor | None:
        """[B, H, W] bool: the pixels of these patches that the classifier saw; None: all."""

    @property
    def part_maps(self) -> Tensor | None:
        """[B, K+1, h, w], last = background."""

    @property
    def empty(self) -> Tensor | None:
        """[B] bool: no patch was selected (before any fallback)."""


@dataclass(frozen=True)
class ClassifierOutput:
    """Output of a classifier without parts."""

    logits: Tensor
    """[B, C]."""
    mask: Tensor | None = None
    """[B, h, w] bool: the patches of a given mask or of a fixed selector; None if the model sees all."""
    empty: Tensor | None = None
    """[B] bool: the mask selects no patch (before any fallback); None: that cannot be."""
    pixels: Tensor | None = None
    """[B, H, W] bool: the pixels of the mask, if the model sees no other; None: all of these patches."""
    stage_1_logits: ClassVar[None] = None
    """There is only one stage."""
    part_maps: ClassVar[None] = None
    """The model has no parts."""


@dataclass(frozen=True)
class StageOneOutput:
    """Output of stage 1, and of a model that consists of stage 1 only (PDiscoFormer)."""

    selection: Selection
    part_logits: Tensor
    """[B, C, K], class scores of each part."""
    part_features: Tensor
    """[B, D, K+1], modulated part vectors."""
    stage_1_logits: ClassVar[None] = None
    """Stage 1's logits are the final `logits`."""

    @property
    def class_logits(self) -> Tensor:
        """[B, C]: stage 1's own classification, the mean over parts (dropped parts count as 0)."""
        return self.part_logits.mean(-1)

    @property
    def logits(self) -> Tensor:
        """[B, C]: the same; the final classification of a model without a second stage."""
        return self.class_logits

    @property
    def mask(self) -> Tensor:
        """[B, h, w] bool: the patches assigned to a part."""
        return self.selection.mask

    @property
    def pixels(self) -> Tensor | None:
        """[B, H, W] bool: the pixels assigned to a part, with `model.mask_resolution=pixel`."""
        return self.selection.pixels

    @property
    def part_maps(self) -> Tensor:
        """[B, K+1, h, w], last = background."""
        return cast(Tensor, self.selection.maps)

    @property
    def empty(self) -> Tensor | None:
        """[B] bool: no patch is assigned to a part (before the fallback)."""
        return self.selection.empty


@dataclass(frozen=True)
class TwoStageOutput:
    """Output of both stages."""

    logits: Tensor
    """[B, C], stage 2."""
    stage_1: StageOneOutput

    @property
    def stage_1_logits(self) -> Tensor:
        """[B, C], stage 1."""
        return self.stage_1.class_logits

    @property
    def part_logits(self) -> Tensor:
        """[B, C, K]: stage-1 class scores of each part."""
        return self.stage_1.part_logits

    @property
    def part_maps(self) -> Tensor:
        """[B, K+1, h, w], last = background."""
        return self.stage_1.part_maps

    @property
    def mask(self) -> Tensor:
        """[B, h, w] bool: the patches that stage 2 saw."""
        return self.stage_1.mask

    @property
    def pixels(self) -> Tensor | None:
        """[B, H, W] bool: the pixels of them that it saw, with `model.mask_resolution=pixel`; None: all."""
        return self.stage_1.pixels

    @property
    def part_features(self) -> Tensor:
        """[B, D, K+1]: modulated part vectors."""
        return self.stage_1.part_features

    @property
    def empty(self) -> Tensor | None:
        """[B] bool: stage 1 kept no patch (before the fallback)."""
        return self.stage_1.empty
