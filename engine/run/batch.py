"""The images of an optimiser step: `data.global_batch` split over processes and micro-batches."""

import math
from dataclasses import dataclass, replace

from common.errors import UserError
from engine.run.config import RunConfig


@dataclass(frozen=True)
class StepBatch:
    """How the images of one optimiser step are split."""

    processes: int
    batch_size: int
    """Images of one process in one micro-batch."""
    accumulation: int
    """Micro-batches."""

    @property
    def images(self) -> int:
        """Images of the step, over all processes."""
        return self.processes * self.batch_size * self.accumulation

    def __str__(self) -> str:
        """For messages."""
        many = self.processes > 1
        of = f"{self.processes} process{'es' * many} x {self.batch_size} x {self.accumulation} micro-batch"
        return f"{self.images} images a step ({of}{'es' * (self.accumulation > 1)})"


def step_batch(config: RunConfig, processes: int) -> StepBatch:
    """The step of a run in that many processes: the fewest micro-batches that fit `data.max_batch_per_device`.

    Raises UserError if `data.global_batch` cannot be split evenly.
    """
    data = config.data
    if not data.global_batch:
        return StepBatch(processes, data.batch_size, config.optim.grad_accum_steps)
    each, rest = divmod(data.global_batch, processes)
    if rest or not each:
        lower, upper = processes * each or processes, processes * (each + 1)
        raise UserError(
            f"data.global_batch={data.global_batch} cannot be split evenly over {processes} processes: start another "
            f"number of them, or set it to {lower}" + (f" or {upper}" if lower != upper else "")
        )
    # At most `each` micro-batches, of one image.
    counts = range(math.ceil(each / data.max_batch_per_device), each + 1)
    accumulation = next(count for count in counts if each % count == 0)
    return StepBatch(processes, each // accumulation, accumulation)


def for_processes(config: RunConfig, processes: int) -> RunConfig:
    """The config with the values that training uses: batch of a process, micro-batches, scaled learning rate.

    A run folder keeps the config without them, so that it can be resumed by another number of processes.
    """
    batch, optim = step_batch(config, processes), config.optim
    ratio = batch.images / optim.lr_batch
    factor = {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[optim.scale_lr]
    return replace(
        config,
        data=replace(config.data, batch_size=batch.batch_size),
        optim=replace(optim, grad_accum_steps=batch.accumulation, lr=optim.lr * factor),
    )


def in_one_process(config: RunConfig) -> RunConfig:
    """The config with the batches that one process has, without `data.global_batch`: equal for equal steps."""
    config = for_processes(config, 1)
    return replace(config, data=replace(config.data, global_batch=0, max_batch_per_device=1))
