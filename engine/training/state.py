"""The state of a training run, and how it is written to a checkpoint and read back."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
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
from engine.training.best_metric import Best
from engine.training.epoch_means import EpochMeans, Sums, merged


@dataclass
class Progress:
    """Progress of a run; stored in checkpoints as JSON."""

    epoch: int = 0
    """Finished epochs."""
    batch: int = 0
    """Finished batches of the current epoch."""
    step: int = 0
    """Optimiser steps taken."""
    best: float | None = None
    """Best value of `best_metric` so far."""
    best_metric: str = ""
    """The metric that selected the best model: `train.best_metric`, or a fallback where that is not a number."""
    best_epoch: float = 0
    train_seconds: float = 0.0
    """Time in training steps, over all sessions of the run."""
    wall_seconds: float = 0.0
    """The same including validation, sheets and checkpoints."""
    epoch_seconds: float = 0.0
    """Time in training steps of the current epoch."""
    sums: list[Sums] = field(default_factory=list)
    """For each process, the running sums of the current epoch (`EpochMeans.state`)."""
    images: int = 0
    """Images of the current epoch so far, over all processes."""
    skipped: int = 0
    """Unreadable images left out so far, over all processes."""
    scaler: dict[str, Any] = field(default_factory=dict)
    """State of the gradient scaler; empty unless precision is fp16."""
    wandb_id: str | None = None
    world_size: int = 1
    """Number of processes of the run."""
    batch_images: int = 0
    """Images per batch, over all processes."""
    fingerprint: dict[str, Any] = field(default_factory=dict)
    """`engine.run.fingerprint.Fingerprint` of the run; empty if an earlier version wrote the checkpoint."""

    @classmethod
    def read(cls, saved: dict[str, Any], path: Path) -> "Progress":
        """The progress of the checkpoint `path`. Raises UserError for unknown names and for values of another type."""
        try:
            progress = cls(**saved)
            for each in fields(cls):
                _check_type(each.name, getattr(progress, each.name), each.default)
            # Written by a version without multi-process training: a single dict.
            sums = progress.sums if isinstance(progress.sums, list) else [progress.sums]
            progress.sums = [
                {name: [float(total), int(count)] for name, (total, count) in converted_metrics(part).items()}
                for part in sums
            ]
        except (TypeError, ValueError, AttributeError, OverflowError):
            raise UserError(f"{path} was written by another version of this code; start a new run") from None
        return progress

    @property
    def selected(self) -> Best | None:
        """What selected the best model so far."""
        if self.best is None or math.isnan(self.best):
            return None
        return Best(self.best_metric, self.best, self.best_epoch)

    @selected.setter
    def selected(self, best: Best | None) -> None:
        self.best_metric, self.best, self.best_epoch = (
            (best.metric, best.value, best.epoch) if best is not None else ("", None, 0)
        )


def _check_type(name: str, value: Any, default: Any) -> None:
    """Raise TypeError unless the value has the type of its default, and a number is not negative."""
    if name in ("best", "wandb_id"):
        fits = value is None or isinstance(value, str if name == "wandb_id" else int | float)
    elif isinstance(default, int | float):
        fits = isinstance(value, int if isinstance(default, int) and name != "best_epoch" else int | float)
        fits = fits and not isinstance(value, bool) and value >= 0
    elif isinstance(default, str):
        fits = isinstance(value, str)
    else:
        fits = isinstance(value, list | dict) if name == "sums" else isinstance(value, dict)
    if not fits:
        raise TypeError(name)


@dataclass
class RunState:
    """Everything that changes during training."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None
    progress: Progress
    means: EpochMeans

    def save(self, path: Path) -> None:
        """Write the state to `path`. Every process must call this; the first one writes."""
        self.progress.sums = gather(self.means.state())
        self.progress.scaler = self.scaler.state_dict()
        self.progress.world_size = processes().world_size
        if isinstance(self.optimizer, ZeroRedundancyOptimizer):
            self.optimizer.consolidate_state_dict()  # to the first process
        if not processes().is_main:
            return
        tensors = checkpointing.prefixed("model", self.model.state_dict())
        tensors |= checkpointing.prefixed("optimizer", checkpointing.optimizer_tensors(self.optimizer))
        if self.ema:
            tensors |= checkpointing.prefixed("ema", self.ema.module.state_dict())
        checkpointing.write_checkpoint(path, tensors, asdict(self.progress))

    def load(self, path: Path, log: Callable[[str], None], allow_change: bool = False) -> None:
        """Restore what `save` wrote; if the file is damaged, log a message and restore the previous checkpoint.

        Raises UserError if there is no checkpoint or it does not fit.
        """
        if not checkpointing.checkpoint_exists(path):
            raise UserError(f"--resume: no checkpoint at {path}; omit --resume to start")
        checkpoint = checkpointing.read_newest(path, log)
        checkpointing.load_weights(self.model, checkpoint.part("model"), path)
        checkpointing.load_optimizer(self.optimizer, checkpoint.part("optimizer"))
        if self.ema:
            checkpointing.load_weights(self.ema.module, checkpoint.part("ema"), path)
        self.progress = Progress.read(checkpoint.progress, path)
        # A process may have found a file damaged or missing that others could read.
        if len(set(gather(self.progress.step))) > 1:
            raise UserError(f"--resume: not all processes read the same checkpoint in {path.parent}; is it shared?")
        check_processes(self.progress.world_size, processes().world_size, allow_change)
        if self.progress.scaler:
            self.scaler.load_state_dict(self.progress.scaler)

    def own_sums(self) -> Sums:
        """This process's sums of the current epoch. If the number of processes changed, the first one gets all sums."""
        here, parts = processes(), self.progress.sums
        if len(parts) == here.world_size:
            return parts[here.rank]
        return merged(parts) if here.is_main else {}
