"""Predictions of a model for a batch."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError
from datasets import Split, collate
from datasets.types import Batch
from metrics.types import Prediction
from models.interface import ImageClassifier, needs_mask
from models.outputs import ModelOutput


def predict(model: nn.Module, batch: Batch, precision: torch.dtype = torch.float32, **options: Any) -> Prediction:
    """The model's prediction for a batch on its device; logits [B, outputs of the model].

    Raises UserError as `check_logits` does.
    """
    prediction = predict_unchecked(model, batch, precision, **options)
    check_logits(prediction.logits, batch.paths)
    return prediction


def predict_unchecked(model: nn.Module, batch: Batch, precision: torch.dtype, **options: Any) -> Prediction:
    """`predict` without waiting for the device; see `FiniteLogits`."""
    with torch.autocast(batch.image.device.type, dtype=precision, enabled=precision != torch.float32):
        return prediction_of(model(batch.image, **given_mask(model, batch), **options))


def check_logits(logits: Tensor, paths: Sequence[str]) -> None:
    """Raise UserError naming the first image with a logit [B, C] that is not finite, which metrics take for wrong."""
    found = FiniteLogits()
    found.add(logits, paths)
    found.check()


class FiniteLogits:
    """`check_logits` for several batches. It waits for the device in `check`, once."""

    def __init__(self) -> None:
        self.finite: list[Tensor] = []
        self.paths: list[str] = []

    def add(self, logits: Tensor, paths: Sequence[str]) -> None:
        """Take in the logits [B, C] of a batch."""
        self.finite.append(logits.isfinite().all(1))
        self.paths += paths

    def check(self) -> None:
        """Raise UserError naming the first image with a logit that is not finite."""
        finite = torch.cat(self.finite).tolist() if self.finite else []
        if not all(finite):
            path = self.paths[finite.index(False)]
            raise UserError(f"the logits of {path} are not finite; use another train.precision or weights")


@contextlib.contextmanager
def evaluation_mode(model: nn.Module, device: torch.device, seed: int) -> Iterator[None]:
    """Eval mode without gradients and with seeded random generators; everything is restored afterwards."""
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
    """Further arguments of `model`: the masks of the batch, if the model needs them.

    Raises UserError if the batch has none.
    """
    if not needs_mask(model):
        return {}
    if batch.mask is None:
        raise UserError(
            f"{_named(model)} needs a mask for every image, but {batch.paths[0]} has none; "
            "set data.mask_folder, and do not use data.augmentation=timm, which drops masks"
        )
    return {"mask": batch.mask}


def _named(model: ImageClassifier) -> str:
    """The key that makes the model need masks."""
    config = model.model_config
    return f"model.name={config.name}" if config.selector == "parts" else f"model.selector={config.selector}"


def check_masks(model: nn.Module, splits: Iterable[Split], mixes_images: bool = False) -> None:
    """Raise UserError if the model needs masks, and the first image of a split has none or training mixes images."""
    if not needs_mask(model):
        return
    if mixes_images:
        raise UserError(
            f"loss.classification: mixed images have no mask, which {_named(model)} needs; set mixup and cutmix to 0"
        )
    for split in splits:
        given_mask(model, collate([split[0]]))


def prediction_of(output: ModelOutput) -> Prediction:
    """The model's output for metrics: detached, logits in float32."""

    def detached(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.detach()

    return Prediction(
        logits=output.logits.detach().float(),
        stage_1_logits=detached(output.stage_1_logits),
        mask=output.mask,
        pixels=output.pixels,
        maps=detached(output.part_maps),
        empty=output.empty,
    )
