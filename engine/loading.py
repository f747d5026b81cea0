"""What a finished run is measured with: its model, with the weights of a checkpoint, and a split."""

import hashlib
from pathlib import Path

import torch
from torch import nn

from common.errors import UserError
from datasets import Split, load_split
from datasets.subset import sample_split
from engine.checkpointing import load_weights, read_checkpoint
from engine.config import RunConfig
from engine.runs import BEST, LAST
from models import build_model
from models.registry import AnyModel


def load_run_model(run: Path, config: RunConfig, checkpoint: str, num_classes: int) -> AnyModel:
    """The run's model with its best or last weights (last: the moving average where the run kept one)."""
    model = build_model(config.model, num_classes, config.data.size_hw, weights=False)
    if checkpoint == "best":
        path = run / BEST / "model.safetensors"
        load_weights(model, read_checkpoint(path).tensors, path)
        return model
    last = read_checkpoint(run / LAST)
    load_weights(model, last.part("ema") or last.part("model"), run / LAST)
    return model


def read_split(config: RunConfig, name: str, limit: int | None) -> Split:
    """The split in its evaluation transform; `limit`: a sample of so many images. Raises UserError for less than 1."""
    if limit is not None and limit < 1:
        raise UserError(f"--limit: {limit} images cannot be measured; give at least 1")
    split = load_split(config.data, name, train=False, seed=config.train.seed)
    return split if limit is None else sample_split(split, limit)


def fingerprint(model: nn.Module) -> str:
    """16 hexadecimal digits that tell a model's weights (names, values) from others."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
