"""How models that classify through given masks get them: from the batch."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from common.errors import UserError
from datasets import Split, collate
from datasets.types import Batch
from models.given_mask import GivenMaskModel


def given_mask(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """What to call `model` with beside the images: the masks of the data set, where it classifies through them.

    Raises UserError where the data set has none.
    """
    if not isinstance(model, GivenMaskModel):
        return {}
    if batch.mask is None:
        raise UserError(
            f"model.name={model.model_config.name} needs a mask for every image, and {batch.paths[0]} comes without; "
            "give data.mask_folder, and not data.augmentation=timm, which drops masks"
        )
    return {"mask": batch.mask}


def check_masks(model: nn.Module, splits: Iterable[Split]) -> None:
    """Raise UserError before any work where a split's first image has no mask and the model needs one."""
    if isinstance(model, GivenMaskModel):
        for split in splits:
            given_mask(model, collate([split[0]]))


def hands_out_mask(model: Any) -> bool:
    """Whether the model's predictions carry a patch mask: of its own making, or given."""
    return hasattr(model, "select") or isinstance(model, GivenMaskModel)
