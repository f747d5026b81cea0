"""The finite check of a training step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.processes import largest
from common.transfer import start_copy_to_host
from engine.run.distributed import PeerFailed

NO_STEP = "no step was taken and the last checkpoint is unchanged; lower optim.lr or use train.precision=fp32"


class DivergedError(UserError):
    """A loss or gradient that is not finite."""


@dataclass(frozen=True)
class MicroBatch:
    """What is kept of a micro-batch for the finite check of its step and for the error message."""

    position: str
    """Epoch and batch, for messages."""
    loss: Tensor
    terms: dict[str, Tensor]
    paths: tuple[str, ...]


class FiniteCheck:
    """Raises DivergedError for a step with a loss or gradient that is not finite, which leaves the weights unchanged.

    A fused optimiser skips such a step on the device, so the host need not wait: the error comes with the check of the
    next step, or with `finish`. With any other optimiser it comes at once.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, fp16: bool) -> None:
        """`fp16`: gradients are not checked; the scaler skips a step whose gradient overflows and lowers its scale."""
        self.model, self.fp16 = model, fp16
        fused = isinstance(optimizer, torch.optim.Adam) and optimizer.defaults["fused"] and not fp16
        self.skipping = optimizer if fused else None
        """The optimiser, if it skips steps itself."""
        self.open: Callable[[], None] | None = None
        """What is left of the last check."""

    def __call__(self, micro_batches: Sequence[MicroBatch]) -> Tensor:
        """Check a step before its weights change; returns the norm of the whole gradient.

        If only another process has a non-finite loss, that process raises DivergedError and this one PeerFailed.
        """
        gradients = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        norms = torch.stack(torch._foreach_norm(list(gradients.values())))
        norm = torch.linalg.vector_norm(norms)
        values = torch.stack([each.loss.float() for each in micro_batches])
        finite = (values if self.fp16 else torch.cat([values, norm[None], norms])).isfinite()
        if self.skipping is not None:
            self.skipping.found_inf = (~finite.all()).float()  # type: ignore[attr-defined]  # 1: skip the step
        self.finish()
        self.open = partial(self._judge, micro_batches, list(gradients), start_copy_to_host(finite))
        if self.skipping is None:
            self.finish()
        return norm

    def finish(self) -> None:
        """Raise the error of the last step, if it is not finite and its error was not raised yet."""
        judge, self.open = self.open, None
        if judge:
            judge()

    @staticmethod
    def _judge(micro_batches: Sequence[MicroBatch], names: Sequence[str], values: Callable[[], Tensor]) -> None:
        finite = values().tolist()
        losses, gradients = finite[: len(micro_batches)], finite[len(micro_batches) :]
        bad = [each for each, ok in zip(micro_batches, losses, strict=True) if not ok]
        if bad:
            largest(len(bad))  # the other processes wait in `largest(0)` below
            raise DivergedError(_about_loss(bad[0]))
        if largest(0)[0]:
            raise PeerFailed
        if not all(gradients):
            wrong = [name for name, ok in zip(names, gradients[1:], strict=True) if not ok]
            raise DivergedError(_about_gradient(micro_batches[-1], wrong))


def _about_loss(micro_batch: MicroBatch) -> str:
    terms = ", ".join(f"{name}={value.item():g}" for name, value in micro_batch.terms.items())
    return f"loss is not finite at {micro_batch.position}; {NO_STEP}; terms: {terms}; files: {_files(micro_batch)}"


def _about_gradient(micro_batch: MicroBatch, names: Sequence[str]) -> str:
    where = f"{', '.join(names[:3])} and {len(names) - 3} more" if len(names) > 3 else ", ".join(names) or "their norm"
    return f"the gradient is not finite at {micro_batch.position} ({where}); {NO_STEP}; files: {_files(micro_batch)}"


def _files(micro_batch: MicroBatch) -> str:
    return ", ".join(micro_batch.paths)
