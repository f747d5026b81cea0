"""Load the model of a run with the weights of a checkpoint, and a split of its data set."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from common.errors import UserError
from common.transfer import on_host
from datasets import Split, load_split
from datasets.formats.notices import say_once
from datasets.subset import sample_split
from datasets.trained_on import with_trained_labels
from engine.run.checkpointing import load_weights, read_checkpoint
from engine.run.config import RunConfig
from engine.run.folder import BEST, LAST, trained_on
from models import build_model
from models.interface import ImageClassifier


def load_run_model(run: Path, config: RunConfig, checkpoint: str, num_outputs: int) -> ImageClassifier:
    """The run's model with its best or last weights (last: the moving average, if the run has one).

    Raises UserError if the weights are missing or do not fit.
    """
    model = build_model(config.model, num_outputs, config.data.size_hw, weights=False)
    if checkpoint == "best":
        path = run / BEST / "model.safetensors"
        load_weights(model, read_checkpoint(path).tensors, path)
        return model
    last = read_checkpoint(run / LAST)
    load_weights(model, last.part("ema") or last.part("model"), run / LAST)
    return model


def warm_start(model: nn.Module, source: str) -> None:
    """Load all weights of the model from `source`: a run folder (its best weights) or a checkpoint.

    Of a checkpoint, the moving average is used if there is one. Raises UserError if the weights do not fit.
    """
    path = Path(source).expanduser()
    path = path / BEST / "model.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"model.init_from: no file {path}; give a run folder or a checkpoint")
    checkpoint = read_checkpoint(path)
    load_weights(model, checkpoint.part("ema") or checkpoint.part("model") or checkpoint.tensors, path)


def read_split(config: RunConfig, name: str, limit: int | None, run: Path | None = None) -> Split:
    """The split with the evaluation transform; `limit`: number of images to sample. Raises UserError below 1.

    With the labels of the model of `run`, if given (`with_trained_labels`).
    """
    if limit is not None and limit < 1:
        raise UserError(f"--limit: must be at least 1, got {limit}")
    split = load_split(config.data, name, train=False, seed=config.train.seed)
    if run and (trained := trained_on(run)):
        split = with_trained_labels(split, trained, str(run))
    elif run:
        say_once(
            f"{run} does not store the names of its classes; labels are taken by number, so {config.data.name} must "
            "have the classes of its training data, in the same order"
        )
    return split if limit is None else sample_split(split, limit)


def read_fit_split(config: RunConfig, limit: int | None, metrics: Sequence[str], run: Path | None = None) -> Split:
    """The split that `metrics` are fitted on: the original training split with the evaluation transform.

    `data.image_folder` and `data.mask_folder` only replace evaluated images. Raises UserError if it cannot be read.
    """
    data = replace(config.data, image_folder="", mask_folder="")
    try:
        return read_split(replace(config, data=data), "train", limit, run)
    except UserError as error:
        raise UserError(f"--metrics: {', '.join(metrics)} must be fitted on the training split: {error}") from None


def fingerprint(model: nn.Module) -> str:
    """A hash of the model's weights (names and values), 16 hexadecimal digits."""
    digest = hashlib.sha256()
    named = sorted(model.state_dict().items())
    for (name, _), tensor in zip(named, on_host(tensor for _, tensor in named), strict=True):
        digest.update(name.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
