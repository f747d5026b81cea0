"""A two-stage model as a judge of masks: what it keeps itself, and what it answers to any other mask."""

from dataclasses import dataclass

import torch
from torch import Tensor

from datasets.config import DataConfig
from engine.run.memory import AutoBatchSize
from models.interface import ImageClassifier, select_parts
from models.selection import Selection


@dataclass(frozen=True)
class MaskedClassifier:
    """A two-stage model in eval mode, shown the images of an evaluation that may be another model's."""

    model: ImageClassifier
    shown: DataConfig
    """How the images it is handed are normalised."""
    own: DataConfig
    """How it was trained to see them."""
    halving: AutoBatchSize

    @torch.no_grad()
    def select(self, images: Tensor) -> Selection:
        """What its stage 1 keeps of images [B, 3, H, W]; with the gate of a soft-mask model."""

        def chosen(piece: slice) -> Selection:
            return select_parts(self.model, self._renormalised(images[piece])).selection

        pieces = self.halving.pieces(chosen, len(images))
        gates = [piece.gate for piece in pieces if piece.gate is not None]
        return Selection(torch.cat([piece.mask for piece in pieces]), gate=torch.cat(gates) if gates else None)

    def keep_ratio(self, images: Tensor) -> Tensor:
        """[B]: share of patches that its stage 1 keeps."""
        return self.select(images).mask.flatten(1).float().mean(1)

    @torch.no_grad()
    def predict(self, images: Tensor, selection: Selection) -> Tensor:
        """Logits [B, C] of stage 2, shown `selection` whatever stage 1 says."""

        def logits(piece: slice) -> Tensor:
            gate = None if selection.gate is None else selection.gate[piece]
            return self.model.predict(self._renormalised(images[piece]), Selection(selection.mask[piece], gate=gate))

        return self.halving(logits, len(images))

    def _renormalised(self, images: Tensor) -> Tensor:
        """The images as the judge was trained to see them."""
        if (self.shown.mean, self.shown.std) == (self.own.mean, self.own.std):
            return images
        mean, std, own_mean, own_std = (
            images.new_tensor(values)[:, None, None]
            for values in (self.shown.mean, self.shown.std, self.own.mean, self.own.std)
        )
        return (images * std + mean - own_mean) / own_std
