"""The faithfulness certificate of one image: everything that stage 2 does not see is overwritten."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from common.errors import UserError
from engine.demo.encoded import Encoded, Predicted
from explain.explained_model import explained_model
from metrics.maps.certificate import FILLS, MOVEMENT, movement, overwritten
from models.interface import selects_patches
from models.selection import enlarge_patches


@dataclass(frozen=True)
class Overwritten:
    """What one fill of the hidden pixels does to a prediction."""

    fill: str
    """One of `FILLS`."""
    image: Tensor
    """[3, H, W], normalised: what the model got."""
    logits: Tensor
    """[C]."""
    logit_change: float
    """The largest change of a logit."""
    probability_change: float
    """The change of the predicted class's probability."""
    flipped: bool
    """Whether the predicted class changed."""


def certify(
    encoded: Encoded, predicted: Predicted, other: Tensor | None = None, visible: Tensor | None = None
) -> list[Overwritten]:
    """Overwrite what `predicted` hides with noise, zeros (after normalisation) and the image `other` [3, H, W].

    The mask is held fixed, as in the metric `certificate`. `other` None: the image upside down. `visible` [h, w] or
    [H, W] bool: the mask, for a model that has none itself. Raises UserError if there is no mask.
    """
    model, selection = encoded.subject.model, predicted.selection
    if selects_patches(model) and selection is not None:
        return _overwrite(encoded, predicted, selection.visible, other, lambda images: model.predict(images, selection))
    if visible is None:
        raise UserError(encoded.subject.limits)
    mask, stage = visible[None].to(encoded.image.device), encoded.subject.stage
    return _overwrite(
        encoded, predicted, mask, other, lambda images: explained_model(model, images, stage).logits(images)
    )


def _overwrite(
    encoded: Encoded, predicted: Predicted, visible: Tensor, other: Tensor | None, predict: Callable[[Tensor], Tensor]
) -> list[Overwritten]:
    images = encoded.image[None]
    size, label = (images.shape[2], images.shape[3]), predicted.logits.argmax()[None]
    pixels = visible if visible.shape[1:] == size else enlarge_patches(visible, size)
    filler = images.flip((-2, -1)) if other is None else other[None].to(images)
    changed, found = overwritten(images, pixels, filler), []
    with encoded.subject.alone():
        for fill in FILLS:
            logits = predict(changed[fill]).float()
            moved = dict(zip(MOVEMENT, movement(predicted.logits[None], logits, label)[0].tolist(), strict=True))
            numbers = moved["logit_change"], moved["probability_change"], bool(moved["flipped"])
            found.append(Overwritten(fill, changed[fill][0], logits[0], *numbers))
    return found


def largest_change(found: list[Overwritten]) -> float:
    """The largest change of a logit over all fills; 0 if the prediction depends on the visible pixels alone."""
    return max(one.logit_change for one in found)
