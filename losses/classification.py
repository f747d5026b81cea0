"""Classification losses for both stages and the baselines, and the mixing of images that goes with two of them.

Call the losses in fp32, inside `torch.autocast(device_type, enabled=False)`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from pytopk import BalNoisedTopK, ImbalNoisedTopK
from timm.data.mixup import Mixup as TimmMixup
from timm.data.mixup import mixup_target
from timm.loss import BinaryCrossEntropy
from torch import Tensor, nn

from common.errors import UserError
from losses.config import ClassificationConfig

KEY = "loss.classification"
TOPK_KINDS = ("balanced_topk", "imbalanced_topk")


class ClassificationLoss:
    """Logits [B, C] and targets ([B] int64 classes, or [B, C] float shares where the kind allows) to one scalar.

    Targets [B, C] bool (images of several classes) are binary cross-entropy, mean over B and C, for `cross_entropy`
    and `bce` alike.
    `cross_entropy`: mean over B; label smoothing applies to class targets only, shares come smoothed from `Mixup`.
    `bce`: timm's binary cross-entropy, mean over B and C, with the same rule for smoothing.
    `balanced_topk`, `imbalanced_topk`: noised top-k hinge losses of Garcin et al. (ICML 2022), from pytopk. They draw
    their noise from torch's global generator, and CUDA has no deterministic kernel for them (kthvalue).
    """

    def __init__(
        self, config: ClassificationConfig, num_classes: int, class_counts: Sequence[int] | None = None
    ) -> None:
        """`class_counts`: training images of each class; `imbalanced_topk` alone needs them.

        Raises UserError, naming the key, for a combination that means nothing.
        """
        _check(config, num_classes, class_counts)
        self.kind = config.kind
        self.smoothing = config.label_smoothing
        self.num_classes = num_classes
        self.bce = BinaryCrossEntropy(smoothing=config.label_smoothing)
        self.topk = _topk_loss(config, class_counts) if config.kind in TOPK_KINDS else None

    def __call__(self, logits_BC: Tensor, targets: Tensor) -> Tensor:
        if logits_BC.ndim != 2 or logits_BC.shape[1] != self.num_classes:
            raise ValueError(f"expected logits [B, {self.num_classes}], got {tuple(logits_BC.shape)}")
        if targets.dtype == torch.bool:
            return self._of_several(logits_BC, targets)
        if targets.is_floating_point():
            return self._of_shares(logits_BC, targets.to(logits_BC.dtype))
        if self.topk is not None:
            # The class margins are a buffer; pytopk leaves it to us to bring them to where the logits are.
            return self.topk.to(logits_BC.device)(logits_BC, targets)
        if self.kind == "bce":
            return self.bce(logits_BC, targets)
        return F.cross_entropy(logits_BC, targets, label_smoothing=self.smoothing)

    def _of_several(self, logits_BC: Tensor, present_BC: Tensor) -> Tensor:
        if self.topk is not None or self.smoothing:
            key = f"kind={self.kind}" if self.topk is not None else f"label_smoothing={self.smoothing:g}"
            raise UserError(f"{KEY}.{key} is for images of one class; leave it out for a data set of several")
        return F.binary_cross_entropy_with_logits(logits_BC, present_BC.to(logits_BC.dtype))

    def _of_shares(self, logits_BC: Tensor, shares_BC: Tensor) -> Tensor:
        if shares_BC.shape != logits_BC.shape:
            raise ValueError(f"float targets must be [B, C] like the logits, got {tuple(shares_BC.shape)}")
        if self.topk is not None:
            raise ValueError(f"{self.kind} takes class targets, not shares of classes")
        return self.bce(logits_BC, shares_BC) if self.kind == "bce" else F.cross_entropy(logits_BC, shares_BC)


class Mixup:
    """Mixup and cutmix of a batch with its own reverse (timm), one draw per batch; both on: either, with p = 0.5."""

    def __init__(self, config: ClassificationConfig, num_classes: int) -> None:
        _check_mixing(config)
        self.active = config.mixup > 0 or config.cutmix > 0
        """False: calling it returns what it was given."""
        self._mix = TimmMixup(
            mixup_alpha=config.mixup,
            cutmix_alpha=config.cutmix,
            label_smoothing=config.label_smoothing,
            num_classes=num_classes,
        )

    def __call__(self, images: Tensor, labels: Tensor, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """Images [B, 3, H, W] and labels [B] to mixed images (a new tensor) and shares of classes [B, C].

        Raises UserError for labels [B, C] bool.

        In a batch of odd size the last image stays unmixed. The draw depends on `seed` alone, by default an integer
        from torch's global CPU generator; numpy's global generator, which timm draws from, is left as it was.
        """
        if not self.active:
            return images, labels
        if labels.dtype == torch.bool:
            raise UserError(f"{KEY}.mixup and cutmix are for images of one class; set both to 0")
        even = len(images) // 2 * 2
        with _numpy_seed(int(torch.randint(2**31, ())) if seed is None else seed):
            # timm mixes in place, and a batch is not ours to change.
            mixed, shares = self._mix(images[:even].clone(), labels[:even])
        last = mixup_target(labels[even:], self._mix.num_classes, smoothing=self._mix.label_smoothing)
        return torch.cat((mixed, images[even:])), torch.cat((shares, last))


@contextmanager
def _numpy_seed(seed: int) -> Iterator[None]:
    """numpy's global generator seeded inside, untouched outside."""
    state = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        np.random.set_state(state)


def _topk_loss(config: ClassificationConfig, class_counts: Sequence[int] | None) -> nn.Module:
    if config.kind == "balanced_topk":
        return BalNoisedTopK(k=config.topk, epsilon=config.topk_epsilon)
    assert class_counts is not None
    # pytopk's default scale of 50 is for cosine logits in [-1, 1]; ours are plain logits, for which it asks for 1.
    return ImbalNoisedTopK(
        k=config.topk,
        epsilon=config.topk_epsilon,
        max_m=config.topk_max_margin,
        cls_num_list=list(class_counts),
        scale=1,
    )


def _check(config: ClassificationConfig, num_classes: int, class_counts: Sequence[int] | None) -> None:
    _check_mixing(config)
    if config.kind in TOPK_KINDS:
        _check_topk(config, num_classes)
    if config.kind == "imbalanced_topk":
        _check_counts(num_classes, class_counts)


def _check_mixing(config: ClassificationConfig) -> None:
    kinds = ("cross_entropy", "bce", *TOPK_KINDS)
    if config.kind not in kinds:
        raise UserError(f"unknown {KEY}.kind {config.kind!r}; known: {', '.join(kinds)}")
    if not 0 <= config.label_smoothing < 1:
        raise UserError(f"{KEY}.label_smoothing must be at least 0 and below 1, got {config.label_smoothing}")
    for key in ("mixup", "cutmix"):
        value = getattr(config, key)
        if value < 0:
            raise UserError(f"{KEY}.{key} must not be negative, got {value}")
        if value > 0 and config.kind in TOPK_KINDS:
            raise UserError(f"{KEY}.{key} needs {KEY}.kind cross_entropy or bce, not {config.kind}")


def _check_topk(config: ClassificationConfig, num_classes: int) -> None:
    # The loss compares with the (k+1)-th largest logit, so there must be one.
    if not 1 <= config.topk < num_classes:
        raise UserError(f"{KEY}.topk must be 1 to {num_classes - 1} for {num_classes} classes, got {config.topk}")
    if config.label_smoothing:
        raise UserError(f"{KEY}.label_smoothing needs {KEY}.kind cross_entropy or bce, not {config.kind}")
    if config.topk_epsilon < 0:
        raise UserError(f"{KEY}.topk_epsilon must not be negative, got {config.topk_epsilon}")


def _check_counts(num_classes: int, class_counts: Sequence[int] | None) -> None:
    name = f"{KEY}.kind imbalanced_topk"
    if class_counts is None or len(class_counts) != num_classes:
        given = "none" if class_counts is None else len(class_counts)
        raise UserError(f"{name} needs the training images of each of {num_classes} classes, got {given} counts")
    if min(class_counts) < 1:
        empty = [index for index, count in enumerate(class_counts) if count < 1]
        raise UserError(f"{name} needs a training image of every class; classes without: {empty[:5]}")
