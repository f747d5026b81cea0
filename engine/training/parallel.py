"""A training step's two passes, in one process or with gradients averaged over several (DDP)."""

import contextlib
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from common.processes import processes
from datasets.types import Batch
from engine.run.config import RunConfig
from engine.training.objectives import ObjectiveOutput

Forward = Callable[[Batch, bool], ObjectiveOutput]
"""(batch, stage_1_only) -> ObjectiveOutput."""


class _Step(nn.Module):
    """An objective as a module, because that is what DDP wraps: it must see a whole forward pass."""

    def __init__(self, model: nn.Module, outcome: Forward) -> None:
        super().__init__()
        self.model, self.outcome = model, outcome

    def forward(self, batch: Batch, stage_1_only: bool) -> ObjectiveOutput:
        return self.outcome(batch, stage_1_only)


class ForwardBackward:
    """Forward and backward of one micro-batch."""

    def __init__(self, model: nn.Module, outcome: Forward, partial: bool) -> None:
        """`outcome` runs `model`; `partial`: some steps leave parameters out."""
        self.whole, self.ddp = outcome, None
        if processes().is_distributed:
            self.ddp = DistributedDataParallel(_Step(model, outcome), find_unused_parameters=partial)

    def __call__(
        self, batch: Batch, stage_1_only: bool, precision: torch.dtype, scale: Callable[[torch.Tensor], torch.Tensor],
        last_of_step: bool,
    ) -> ObjectiveOutput:  # fmt: skip
        """Leave the gradient of the `scale`d loss in the parameters. It is averaged over the processes with the last
        micro-batch of a step."""
        device = batch.image.device.type
        with contextlib.nullcontext() if self.ddp is None or last_of_step else self.ddp.no_sync():
            with torch.autocast(device, dtype=precision, enabled=precision != torch.float32):
                outcome = cast(ObjectiveOutput, (self.ddp or self.whole)(batch, stage_1_only))
            scale(outcome.loss).backward()
        return outcome


def has_unused_parameters(config: RunConfig) -> bool:
    """Whether some steps give some trainable parameters no gradient, which DDP must know."""
    weights = config.loss.weights
    one_stage = config.model.name == "two_stage" and not (weights.stage_1 and weights.stage_2)
    return one_stage or config.optim.stage_1_epochs > 0 or config.data.semi.mode in ("alternating", "unsupervised")


def broadcast_buffers(model: nn.Module) -> None:
    """Give every process the first one's buffers: BatchNorm's statistics of its own images are on each."""
    for buffer in model.buffers() if processes().is_distributed else ():
        dist.broadcast(buffer, 0)


def sync_batchnorm(model: nn.Module, device: torch.device) -> Any:
    """The model with BatchNorm over the batches of all processes; torch has that for GPUs only."""
    several = processes().is_distributed and device.type == "cuda"
    return nn.SyncBatchNorm.convert_sync_batchnorm(model) if several else model
