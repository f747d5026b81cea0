"""What stops a step before it spoils the weights, and failures of the machine told in one line."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.processes import largest
from datasets.types import Batch
from engine.run.distributed import PeerFailed
from engine.training.objectives import ObjectiveOutput

NO_STEP = "no step was taken, the last checkpoint is untouched; lower optim.lr or use train.precision=fp32"


@dataclass(frozen=True)
class Answer:
    """What a micro-batch gave, kept until its step is checked."""

    place: str
    """Epoch and batch, in words."""
    loss: Tensor
    terms: dict[str, Tensor]
    paths: tuple[str, ...]


class StepGuard:
    """Checks losses and gradients of one optimiser step together: one wait for the device in a step."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []

    def note(self, place: str, outcome: ObjectiveOutput, batch: Batch) -> None:
        """Remember a micro-batch of the step."""
        self.answers.append(Answer(place, outcome.loss.detach(), outcome.terms, tuple(batch.paths)))

    def check(self, norm: Tensor | None, model: nn.Module) -> None:
        """Raise UserError unless all losses and the gradients' norm are finite (None: not to be checked), and forget.

        Where another process has such a loss, that one raises UserError and this one PeerFailed.
        """
        answers, self.answers = self.answers, []
        values = torch.stack([answer.loss.float() for answer in answers] + ([] if norm is None else [norm.float()]))
        finite = values.isfinite().tolist()
        spoilt = [answer for answer, fine in zip(answers, finite, strict=False) if not fine]
        somewhere = largest(len(spoilt))[0]
        if spoilt:
            raise UserError(_about_loss(spoilt[0]))
        if somewhere:
            raise PeerFailed
        if not all(finite):
            raise UserError(_about_gradient(answers[-1], model))


def gradient_norm(model: nn.Module) -> Tensor:
    """Global norm of all gradients."""
    return nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])


def _about_loss(answer: Answer) -> str:
    terms = ", ".join(f"{name}={value.item():g}" for name, value in answer.terms.items())
    return f"loss is not finite at {answer.place}; {NO_STEP}; terms: {terms}; files: {', '.join(answer.paths)}"


def _about_gradient(answer: Answer, model: nn.Module) -> str:
    bad = [name for name, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    where = f"{', '.join(bad[:3])} and {len(bad) - 3} more" if len(bad) > 3 else ", ".join(bad) or "their norm"
    return f"the gradient is not finite at {answer.place} ({where}); {NO_STEP}; files: {', '.join(answer.paths)}"
