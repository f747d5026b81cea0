"""One training step: forward, backward, finite check, clipping, optimiser step, weight average."""

import contextlib

import torch
from torch import nn

from common.seeds import stable_seed
from datasets.types import Batch
from engine.run.config import RunConfig
from engine.training.finite import FiniteCheck, MicroBatch
from engine.training.objectives import Objective, ObjectiveOutput
from engine.training.parallel import data_parallel
from engine.training.state import RunState


class TrainStep:
    """Runs micro-batches; after every `optim.grad_accum_steps` of them, an optimiser step."""

    def __init__(self, config: RunConfig, state: RunState, objective: Objective, precision: torch.dtype) -> None:
        """`state` is updated in place. `precision`: dtype of autocast."""
        self.config, self.state, self.objective, self.precision = config, state, objective, precision
        # `_output` reads `self.objective` at each call, so that an objective set later is used.
        self.ddp = data_parallel(state.model, self._output, config)
        self.pending: list[MicroBatch] = []
        self.check = FiniteCheck(state.model, state.optimizer, fp16=state.scaler.is_enabled())

    def __call__(self, batch: Batch, weight: float, lr_factor: float | None, added_lr: float = 0.0) -> ObjectiveOutput:
        """Forward and backward pass of one micro-batch on its device.

        `weight`: factor of the loss in the step's gradient. `lr_factor`: learning-rate factor of the optimiser step
        after this micro-batch; None: only accumulate the gradient. `added_lr`: what is then added to every group's
        rate. Raises DivergedError if a loss or gradient of this step, or of the one before, is not finite.
        """
        progress, last = self.state.progress, lr_factor is not None
        # All noise of a step depends on (seed, epoch, batch) alone: resuming needs no generator state.
        torch.manual_seed(stable_seed("step", self.config.train.seed, progress.epoch, progress.batch))
        stage_1_only = progress.epoch < self.config.optim.stage_1_epochs

        # DDP averages gradients over the processes only in the last backward pass of a step.
        with contextlib.nullcontext() if self.ddp is None or last else self.ddp.no_sync():
            with torch.autocast(batch.image.device.type, dtype=self.precision, enabled=self.precision != torch.float32):
                output: ObjectiveOutput = (self.ddp or self._output)(batch, stage_1_only)
            self.state.scaler.scale(output.loss * weight).backward()

        position = f"epoch {progress.epoch + 1}, batch {progress.batch + 1}"
        self.pending.append(MicroBatch(position, output.loss.detach(), output.terms, tuple(batch.paths)))
        if lr_factor is not None:
            self._update(lr_factor, added_lr)
        return output

    def _output(self, batch: Batch, stage_1_only: bool) -> ObjectiveOutput:
        return self.objective(self.state.model, batch, stage_1_only=stage_1_only)

    def _update(self, lr_factor: float, added_lr: float) -> None:
        """The optimiser step with the accumulated gradients."""
        model, optimizer, scaler, ema = self.state.model, self.state.optimizer, self.state.scaler, self.state.ema
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * lr_factor + added_lr

        # check
        scaler.unscale_(optimizer)
        pending, self.pending = self.pending, []
        norm = self.check(pending)

        # clip and step
        if self.config.optim.clip:
            nn.utils.clip_grads_with_norm_(model.parameters(), self.config.optim.clip, norm)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        self.state.progress.step += 1

        # average
        if ema:
            ema.update(model, step=self.state.progress.step)
