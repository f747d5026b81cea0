"""A model's predictions for one batch."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError
from datasets import Split, collate
from datasets.types import Batch
from metrics.types import Prediction
from models.interface import needs_mask
from models.outputs import ModelOutput


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
    if not needs_mask(model):
        return {}
    if batch.mask is None:
        raise UserError(
            f"model.name={model.model_config.name} needs a mask for every image, and {batch.paths[0]} comes without; "
            "give data.mask_folder, and not data.augmentation=timm, which drops masks"
        )
    return {"mask": batch.mask}


def check_masks(model: nn.Module, splits: Iterable[Split]) -> None:
    """Raise UserError before any work where a split's first image has no mask and the model needs one."""
    if needs_mask(model):
        for split in splits:
            given_mask(model, collate([split[0]]))


def prediction_of(output: ModelOutput) -> Prediction:
    """What metrics see of a model's output, detached; logits in float32."""

    def detached(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.detach()

    return Prediction(
        logits=output.logits.detach().float(),
        stage_1_logits=detached(output.stage_1_logits),
        mask=output.mask,
        maps=detached(output.part_maps),
        empty=output.empty,
    )
