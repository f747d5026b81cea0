"""What is measured: a run with its own images, or a model of random weights with noise for images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from step_variants import NUM_CLASSES, SEED, GivenMaskModel, random_mask
from torch import Tensor

from common.errors import UserError
from datasets import eval_loader
from datasets.types import Batch
from engine.evaluation.loading import load_run_model, read_split
from engine.run.folder import run_config
from models import build_model
from models.config import ModelConfig
from models.interface import ImageClassifier
from models.registry import MODELS


@dataclass(frozen=True)
class Subject:
    """A model, and the images that it is measured on."""

    name: str
    model: ImageClassifier
    images: Tensor
    """[M, 3, H, W] float32, on the CPU."""
    pixel_masks: Tensor | None
    """[M, H, W] bool: what a model with given masks gets; None where the data set has none."""
    patch_masks: Tensor | None
    """[M, h, w] bool: what stands in for the mask of a random stage 1; None: the model's own mask."""
    source: str
    """Where the images and the masks come from, for people."""

    def batch(self, number: int, size: int, device: torch.device) -> Batch:
        """Images number * size ... of an endless round of them, ready to be read: [size, 3, H, W]."""
        index = torch.arange(number * size, (number + 1) * size) % len(self.images)
        if self.patch_masks is not None and isinstance(self.model, GivenMaskModel):
            self.model.given = self.patch_masks[index].to(device)
        masks = None if self.pixel_masks is None else self.pixel_masks[index]
        paths = tuple(f"image {i}" for i in index.tolist())
        return Batch(self.images[index], torch.zeros(size, dtype=torch.long), paths, mask=masks).to(device)


def run_subject(run: Path, split_name: str, images: int, overrides: Sequence[str]) -> Subject:
    """The best weights of a run, on a sample of a split. Raises UserError."""
    config = run_config(run, overrides)
    split = read_split(config, split_name, images)
    model = load_run_model(run, config, "best", split.info.num_outputs)
    batches = list(eval_loader(split, batch_size=config.data.eval_batch_size, workers=config.data.workers))
    masks = [batch.mask for batch in batches if batch.mask is not None]
    return Subject(
        name=run.name or str(run),
        model=model,
        images=torch.cat([batch.image for batch in batches]),
        pixel_masks=torch.cat(masks) if len(masks) == len(batches) else None,
        patch_masks=None,
        source=f"{len(split)} images of its {split_name} split",
    )


def random_subject(name: str, images: int, side: int, keep: float, spread: float) -> Subject:
    """KIND/BACKBONE with random weights on noise; stage 1's mask is replaced by one that keeps a share of patches.

    The shares run evenly from keep * (1 - spread) to keep * (1 + spread) over the images. Raises UserError.
    """
    kind, _, backbone = name.partition("/")
    if not backbone or kind not in MODELS:
        raise UserError(f"{name!r} is neither a run folder nor KIND/BACKBONE with KIND of {', '.join(MODELS)}")
    config, size = ModelConfig(name=kind, backbone=backbone, weights="none"), (side, side)
    generator = torch.Generator().manual_seed(SEED)
    subject = Subject(
        name=name,
        model=build_model(config, NUM_CLASSES, size),
        images=torch.randn(images, 3, *size, generator=generator),
        pixel_masks=None,
        patch_masks=None,
        source=f"{images} images of noise",
    )
    if kind == "two_stage":
        model = GivenMaskModel(config, NUM_CLASSES, size)
        rows, columns = model.stage_2.backbone.patch_embed.grid_size
        mask = random_mask(images, (rows, columns), keep, spread)
        about = f"{subject.source}; masks given, {keep:.0%} of the patches, by image +- {spread:.0%} of that"
        subject = replace(
            subject, model=model, patch_masks=mask[torch.randperm(images, generator=generator)], source=about
        )
    elif kind in ("decoupled", "late_masking"):
        subject = replace(subject, pixel_masks=torch.rand(images, *size, generator=generator) < keep)
    return subject
