"""A two-stage model that classifies images with its own mask or with any given one."""

from dataclasses import dataclass

import torch
from torch import Tensor

from common.transfer import on_device
from datasets.config import DataConfig
from engine.run.memory import AutoBatchSize
from models.interface import ImageClassifier
from models.selection import Selection


@dataclass(frozen=True)
class MaskedClassifier:
    """A two-stage model in eval mode on images that may be normalised for another model."""

    model: ImageClassifier
    shown: DataConfig
    """Data config of the images passed in."""
    own: DataConfig
    """Data config that the model was trained with."""
    auto_batch: AutoBatchSize
    precision: torch.dtype = torch.float32
    """Of `predict`."""

    @torch.no_grad()
    def select(self, images: Tensor) -> Selection:
        """The patches that stage 1 selects in images [B, 3, H, W]; with the gate of a soft-mask model."""

        def select(piece: slice) -> Selection:
            return self.model.selection(self._renormalised(images[piece]))

        pieces = self.auto_batch.pieces(select, len(images))
        return pieces[0].joined(pieces[1:]).counted()

    def keep_ratio(self, images: Tensor) -> Tensor:
        """[B]: fraction of patches that its stage 1 keeps."""
        return self.select(images).mask.flatten(1).float().mean(1)

    @torch.no_grad()
    def predict(self, images: Tensor, selection: Selection) -> Tensor:
        """Logits [B, C] of stage 2, with `selection` in place of stage 1's own."""
        selection = selection if selection.counts else selection.counted()

        def logits(piece: slice) -> Tensor:
            with torch.autocast(images.device.type, self.precision, enabled=self.precision != torch.float32):
                outputs = self.model.predict(self._renormalised(images[piece]), selection.part(piece))
            return outputs if self.precision == torch.float32 else outputs.float()

        return self.auto_batch(logits, len(images))

    def _renormalised(self, images: Tensor) -> Tensor:
        """The images in the normalisation that the model was trained with."""
        if self.shown.normalisation == self.own.normalisation:
            return images
        mean, std, own_mean, own_std = (
            on_device(values, images.device, images.dtype)[:, None, None]
            for values in (*self.shown.normalisation, *self.own.normalisation)
        )
        return (images * std + mean - own_mean) / own_std
