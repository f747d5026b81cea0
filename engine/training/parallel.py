"""Data-parallel training: DDP around the objective, synchronised BatchNorm and buffers."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from common.processes import processes
from datasets.types import Batch
from engine.run.config import RunConfig
from engine.training.objectives import ObjectiveOutput
from models.interface import is_two_stage

Forward = Callable[[Batch, bool], ObjectiveOutput]
"""(batch, stage_1_only) -> ObjectiveOutput."""


class _ObjectiveModule(nn.Module):
    """An objective as a module, because DDP wraps one forward pass but the stages of a model are called separately."""

    def __init__(self, model: nn.Module, output: Forward) -> None:
        super().__init__()
        self.model, self.output = model, output

    def forward(self, batch: Batch, stage_1_only: bool) -> ObjectiveOutput:
        return self.output(batch, stage_1_only)


def data_parallel(model: nn.Module, output: Forward, config: RunConfig) -> DistributedDataParallel | None:
    """DDP around `output`, which runs `model`; None with a single process."""
    if not processes().is_distributed:
        return None
    unused = has_unused_parameters(model, config)
    return DistributedDataParallel(_ObjectiveModule(model, output), find_unused_parameters=unused)


def has_unused_parameters(model: nn.Module, config: RunConfig) -> bool:
    """Whether some steps leave trainable parameters without a gradient, which DDP must know in advance."""
    weights = config.loss.weights
    # A stage without a classification loss, epochs of stage 1 alone, or batches that only use the consistency loss.
    one_stage = is_two_stage(model) and not (weights.stage_1 and weights.stage_2)
    return one_stage or config.optim.stage_1_epochs > 0 or config.data.semi.mode in ("alternating", "unsupervised")


def broadcast_buffers(model: nn.Module) -> None:
    """Copy the buffers of the first process to all: BatchNorm statistics differ, as each process sees other images."""
    for buffer in model.buffers() if processes().is_distributed else ():
        dist.broadcast(buffer, 0)


def sync_batchnorm(model: nn.Module, device: torch.device) -> Any:
    """The model with BatchNorm over the batches of all processes, which PyTorch supports on GPUs only."""
    on_gpus = processes().is_distributed and device.type == "cuda"
    return nn.SyncBatchNorm.convert_sync_batchnorm(model) if on_gpus else model
