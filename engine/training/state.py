"""What a run is made of at one point in time, and how that gets into a checkpoint and back."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer

from common.errors import UserError
from common.processes import gather, processes
from engine.run import checkpointing
from engine.run.renamed_keys import converted_metrics
from engine.run.resume import check_processes
from engine.training.epoch_means import EpochMeans, Sums, merged


@dataclass
class Progress:
    """Where a run is; everything here goes into checkpoints as JSON."""

    epoch: int = 0
    """Finished epochs."""
    batch: int = 0
    """Finished batches of the running epoch."""
    step: int = 0
    """Optimiser steps taken."""
    best: float | None = None
    best_epoch: float = 0
    train_seconds: float = 0.0
    """Spent in training steps, over all sessions of the run."""
    wall_seconds: float = 0.0
    """The same with validation, images and checkpoints."""
    epoch_seconds: float = 0.0
    sums: list[Sums] = field(default_factory=list)
    """Of the running epoch, for each process: of the loss, each term, ... a sum and over how many images it is."""
    images: int = 0
    """Trained on in the running epoch, by all processes."""
    skipped: int = 0
    """Unreadable images left out so far, by all processes."""
    scaler: dict[str, Any] = field(default_factory=dict)
    wandb_id: str | None = None
    world_size: int = 1
    """Processes that trained the run."""
    batch_images: int = 0
    """Images of a batch of all of them together."""


@dataclass
class RunState:
    """Everything that training changes."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None
    progress: Progress
    means: EpochMeans

    def save(self, path: Path) -> None:
        """Write all of it; every process must come here, the first one writes."""
        self.progress.sums = gather(self.means.state())
        self.progress.scaler = self.scaler.state_dict()
        self.progress.world_size = processes().world_size
        if isinstance(self.optimizer, ZeroRedundancyOptimizer):
            self.optimizer.consolidate_state_dict()  # in the first process
        if not processes().is_main:
            return
        tensors = checkpointing.prefixed("model", self.model.state_dict())
        tensors |= checkpointing.prefixed("optimizer", checkpointing.optimizer_tensors(self.optimizer))
        if self.ema:
            tensors |= checkpointing.prefixed("ema", self.ema.module.state_dict())
        checkpointing.write_checkpoint(path, tensors, asdict(self.progress))

    def load(self, path: Path, log: Callable[[str], None], allow_change: bool = False) -> None:
        """Put back what `save` wrote, or, after a line to `log`, the checkpoint before it where that is damaged.

        Raises UserError when there is nothing or it does not fit.
        """
        if not checkpointing.checkpoint_exists(path):
            raise UserError(f"--resume: no checkpoint at {path}; leave --resume out to start")
        checkpoint = checkpointing.read_newest(path, log)
        checkpointing.load_weights(self.model, checkpoint.part("model"), path)
        checkpointing.load_optimizer(self.optimizer, checkpoint.part("optimizer"))
        if self.ema:
            checkpointing.load_weights(self.ema.module, checkpoint.part("ema"), path)
        try:
            self.progress = Progress(**checkpoint.progress)
        except TypeError:
            raise UserError(f"{path} was written by another version of this code; start the run afresh") from None
        if not isinstance(self.progress.sums, list):  # as they were before there were several processes
            self.progress.sums = [self.progress.sums]
        self.progress.sums = [converted_metrics(sums) for sums in self.progress.sums]
        if len(set(gather(self.progress.step))) > 1:  # one found a file damaged or missing that others could read
            raise UserError(f"--resume: not all processes read the same checkpoint in {path.parent}; is it shared?")
        check_processes(self.progress.world_size, processes().world_size, allow_change)
        if self.progress.scaler:
            self.scaler.load_state_dict(self.progress.scaler)

    def own_sums(self) -> Sums:
        """This process's part of the running epoch's sums; all of them fall to the first where their number changed."""
        here, parts = processes(), self.progress.sums
        if len(parts) == here.world_size:
            return parts[here.rank]
        return merged(parts) if here.is_main else {}
