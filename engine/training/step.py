"""One training step: forward, backward, finite check, clipping, optimiser step, weight average."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.processes import largest
from common.seeds import stable_seed
from datasets.types import Batch
from engine.run.config import RunConfig
from engine.run.distributed import PeerFailed
from engine.training.objectives import Objective, ObjectiveOutput
from engine.training.parallel import data_parallel
from engine.training.state import RunState

NO_STEP = "no step was taken and the last checkpoint is unchanged; lower optim.lr or use train.precision=fp32"


class DivergedError(UserError):
    """A loss or gradient that is not finite."""


@dataclass(frozen=True)
class MicroBatch:
    """What is kept of a micro-batch until its optimiser step, for the finite check and its error message."""

    position: str
    """Epoch and batch, for messages."""
    loss: Tensor
    terms: dict[str, Tensor]
    paths: tuple[str, ...]


class TrainStep:
    """Runs micro-batches; after every `optim.grad_accum_steps` of them, an optimiser step."""

    def __init__(self, config: RunConfig, state: RunState, objective: Objective, precision: torch.dtype) -> None:
        """`state` is updated in place. `precision`: dtype of autocast."""
        self.config, self.state, self.objective, self.precision = config, state, objective, precision
        # `_output` reads `self.objective` at each call, so that an objective set later is used.
        self.ddp = data_parallel(state.model, self._output, config)
        self.pending: list[MicroBatch] = []

    def __call__(self, batch: Batch, weight: float, lr_factor: float | None, added_lr: float = 0.0) -> ObjectiveOutput:
        """Forward and backward pass of one micro-batch on its device.

        `weight`: factor of the loss in the step's gradient. `lr_factor`: learning-rate factor of the optimiser step
        after this micro-batch; None: only accumulate the gradient. `added_lr`: what is then added to every group's
        rate. Raises DivergedError, before the weights change, if a loss or gradient of the step is not finite.
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
        norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        pending, self.pending = self.pending, []
        # Under fp16 the scaler handles an overflowing gradient: it skips the step and lowers its scale.
        check_finite(pending, None if scaler.is_enabled() else norm, model)

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


def check_finite(micro_batches: Sequence[MicroBatch], norm: Tensor | None, model: nn.Module) -> None:
    """Raise DivergedError unless all losses of a step and the gradient norm (None: not checked) are finite.

    If only another process has a non-finite loss, that process raises DivergedError and this one PeerFailed.
    """
    values = torch.stack([each.loss.float() for each in micro_batches] + ([] if norm is None else [norm.float()]))
    finite = values.isfinite().tolist()  # the only wait for the device in a step
    # `finite` may have one more value, that of the norm.
    bad = [each for each, ok in zip(micro_batches, finite, strict=False) if not ok]
    if bad:
        largest(len(bad))  # the other processes wait in `largest(0)` below
        raise DivergedError(_about_loss(bad[0]))
    if largest(0)[0]:
        raise PeerFailed
    if not all(finite):
        raise DivergedError(_about_gradient(micro_batches[-1], model))


def _about_loss(micro_batch: MicroBatch) -> str:
    terms = ", ".join(f"{name}={value.item():g}" for name, value in micro_batch.terms.items())
    return f"loss is not finite at {micro_batch.position}; {NO_STEP}; terms: {terms}; files: {_files(micro_batch)}"


def _about_gradient(micro_batch: MicroBatch, model: nn.Module) -> str:
    bad = [name for name, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    where = f"{', '.join(bad[:3])} and {len(bad) - 3} more" if len(bad) > 3 else ", ".join(bad) or "their norm"
    return f"the gradient is not finite at {micro_batch.position} ({where}); {NO_STEP}; files: {_files(micro_batch)}"


def _files(micro_batch: MicroBatch) -> str:
    return ", ".join(micro_batch.paths)
