"""A model's predictions for one batch."""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError
from datasets import Split, collate
from datasets.types import Batch
from metrics.types import Prediction
from models.baseline import ClassifierOutput
from models.given_mask import GivenMaskModel
from models.selection import Selection
from models.two_stage import StageOneOutput, TwoStageOutput


def predict(model: nn.Module, batch: Batch, precision: torch.dtype = torch.float32, **options: Any) -> Prediction:
    """The model's answer, in its own outputs, for one batch on its device."""
    with torch.autocast(batch.image.device.type, dtype=precision, enabled=precision != torch.float32):
        return prediction_of(model(batch.image, **given_mask(model, batch), **options))


@contextlib.contextmanager
def evaluation_mode(model: nn.Module, device: torch.device, seed: int) -> Iterator[None]:
    """No gradients, eval mode, seeded generators; everything restored after."""
    was_training = model.training
    model.eval()
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.manual_seed(seed)
            yield
    finally:
        model.train(was_training)


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


def prediction_of(output: TwoStageOutput | StageOneOutput | ClassifierOutput) -> Prediction:
    """What metrics see of a model's output, detached. Stage 1 alone (PDiscoFormer) gives the final classification."""
    if isinstance(output, ClassifierOutput):
        return Prediction(logits=output.logits.detach().float(), mask=output.mask, empty=output.empty)
    if isinstance(output, TwoStageOutput):
        alone = prediction_of(output.stage_1)
        return replace(alone, logits=output.logits.detach().float(), stage_1_logits=alone.logits)
    selection = output.selection
    return Prediction(
        logits=output.class_logits.detach(),
        mask=selection.mask,
        maps=_maps(selection).detach(),
        empty=selection.empty,
    )


def _maps(selection: Selection) -> Tensor:
    assert selection.maps is not None
    return selection.maps
