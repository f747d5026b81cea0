"""Classification losses for both stages and the baselines, and mixup and cutmix.

Call the losses in fp32, inside `torch.autocast(device_type, enabled=False)`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pytopk import BalNoisedTopK, ImbalNoisedTopK
from timm.data.mixup import Mixup as TimmMixup
from timm.data.mixup import mixup_target
from timm.loss import BinaryCrossEntropy
from torch import Tensor, nn

from common.errors import UserError
from common.seeds import seeded_globals
from losses.config import ClassificationConfig

KEY = "loss.classification"
TOPK_KINDS = ("balanced_topk", "imbalanced_topk")


class ClassificationLoss:
    """Logits [B, C] and targets to a scalar.

    Targets are classes [B] int64, class probabilities [B, C] float (kinds `cross_entropy` and `bce`), or the classes of
    multi-label images [B, C] bool (the same kinds; always binary cross-entropy).

    `cross_entropy`: mean over B. Label smoothing applies to class targets only; `Mixup` smooths its probabilities.
    `bce`: timm's binary cross-entropy, mean over B and C (`bce_sum`: over B), smoothing as above.
    `balanced_topk`, `imbalanced_topk`: noised top-k hinge losses of Garcin et al. (ICML 2022), from pytopk. Their noise
    is drawn from torch's global generator, and they have no deterministic CUDA kernel (kthvalue).
    """

    def __init__(
        self, config: ClassificationConfig, num_classes: int, class_counts: Sequence[int] | None = None
    ) -> None:
        """`class_counts`: number of training images per class, needed by `imbalanced_topk` only.

        Raises UserError for keys that cannot be combined.
        """
        _check_mixing(config)
        if config.kind in TOPK_KINDS:
            _check_topk(config, num_classes)
        if config.kind == "imbalanced_topk":
            _check_counts(num_classes, class_counts)
        self.kind = config.kind
        self.smoothing = config.label_smoothing
        self.num_classes = num_classes
        self.bce = BinaryCrossEntropy(
            smoothing=config.label_smoothing, target_threshold=config.bce_target_threshold,
            sum_classes=config.bce_sum, pos_weight=config.bce_pos_weight,
        )  # fmt: skip
        self.topk = _topk_loss(config, class_counts) if config.kind in TOPK_KINDS else None

    def __call__(self, logits_BC: Tensor, targets: Tensor) -> Tensor:
        if logits_BC.ndim != 2 or logits_BC.shape[1] != self.num_classes:
            raise ValueError(f"expected logits [B, {self.num_classes}], got {tuple(logits_BC.shape)}")
        if targets.dtype == torch.bool:
            return self._multi_label(logits_BC, targets)
        if targets.is_floating_point():
            return self._soft(logits_BC, targets.to(logits_BC.dtype))
        if self.topk is not None:
            # The class margins are a buffer that must be on the device of the logits.
            loss: Tensor = self.topk.to(logits_BC.device)(logits_BC, targets)
        elif self.kind == "bce":
            loss = self._bce(logits_BC, targets)
        else:
            loss = F.cross_entropy(logits_BC, targets, label_smoothing=self.smoothing)
        return loss

    def _multi_label(self, logits_BC: Tensor, present_BC: Tensor) -> Tensor:
        if self.topk is not None or self.smoothing:
            key = f"kind={self.kind}" if self.topk is not None else f"label_smoothing={self.smoothing:g}"
            raise UserError(f"{KEY}.{key} is for images of one class; remove it for a multi-label data set")
        return self._bce(logits_BC, present_BC.to(logits_BC.dtype))

    def _bce(self, logits_BC: Tensor, targets: Tensor) -> Tensor:
        loss: Tensor = self.bce.to(logits_BC.device)(logits_BC, targets)  # the positive weight is a buffer
        return loss

    def _soft(self, logits_BC: Tensor, probabilities_BC: Tensor) -> Tensor:
        if probabilities_BC.shape != logits_BC.shape:
            raise ValueError(f"float targets must be [B, C] like the logits, got {tuple(probabilities_BC.shape)}")
        if self.topk is not None:
            raise ValueError(f"{self.kind} needs class targets, not class probabilities")
        return (self._bce if self.kind == "bce" else F.cross_entropy)(logits_BC, probabilities_BC)


class Mixup:
    """Mixup and cutmix of a batch with its own reverse (timm)."""

    def __init__(self, config: ClassificationConfig, num_classes: int) -> None:
        _check_mixing(config)
        self.active = mixes_images(config)
        """False: a call returns its arguments unchanged."""
        self._mix = TimmMixup(
            config.mixup, config.cutmix, config.cutmix_minmax, config.mixup_prob, config.mixup_switch_prob,
            config.mixup_mode, label_smoothing=config.label_smoothing, num_classes=num_classes,
        )  # fmt: skip

    def __call__(self, images: Tensor, labels: Tensor, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """Images [B, 3, H, W] and labels [B] to mixed images (a new tensor) and class probabilities [B, C].

        In a batch of odd size the last image is not mixed. The draw depends on `seed` only, by default an integer from
        torch's global CPU generator; NumPy's global generator, which timm uses, is not changed.

        Raises UserError for multi-label targets [B, C] bool.
        """
        if not self.active:
            return images, labels
        if labels.dtype == torch.bool:
            raise UserError(f"{KEY}.mixup and cutmix are for images of one class; set both to 0 (cutmix_minmax: null)")
        if (limits := self._mix.cutmix_minmax) and len({int(min(images.shape[-2:]) * limit) for limit in limits}) < 2:
            raise UserError(f"{KEY}.cutmix_minmax={list(limits)} is less than a pixel of {tuple(images.shape[-2:])}")
        even = len(images) // 2 * 2
        with seeded_globals(int(torch.randint(2**31, ())) if seed is None else seed % 2**32):
            # timm mixes in place; the caller's batch must not change.
            mixed, probabilities = self._mix(images[:even].clone(), labels[:even])
        last = mixup_target(labels[even:], self._mix.num_classes, smoothing=self._mix.label_smoothing)
        return torch.cat((mixed, images[even:])), torch.cat((probabilities, last))


def mixes_images(config: ClassificationConfig) -> bool:
    """Whether mixup or cutmix is on."""
    return config.mixup > 0 or config.cutmix > 0 or config.cutmix_minmax is not None


def _topk_loss(config: ClassificationConfig, class_counts: Sequence[int] | None) -> nn.Module:
    loss: nn.Module
    if config.kind == "balanced_topk":
        loss = BalNoisedTopK(k=config.topk, epsilon=config.topk_epsilon)
    else:
        counts = list(class_counts or ())
        # pytopk's default scale of 50 is for cosine logits in [-1, 1]; for plain logits it asks for 1.
        loss = ImbalNoisedTopK(
            k=config.topk, epsilon=config.topk_epsilon, max_m=config.topk_max_margin, cls_num_list=counts, scale=1
        )
    return loss


def _check_mixing(config: ClassificationConfig) -> None:
    kinds = ("cross_entropy", "bce", *TOPK_KINDS)
    if config.kind not in kinds:
        raise UserError(f"unknown {KEY}.kind {config.kind!r}; known: {', '.join(kinds)}")
    for key in ("mixup", "cutmix", "cutmix_minmax"):
        if getattr(config, key) and config.kind in TOPK_KINDS:
            raise UserError(f"{KEY}.{key} needs {KEY}.kind cross_entropy or bce, not {config.kind}")
    if config.cutmix_minmax and config.cutmix_minmax[0] >= config.cutmix_minmax[1]:
        raise UserError(f"{KEY}.cutmix_minmax={list(config.cutmix_minmax)}: the second must be larger than the first")
    default = ClassificationConfig()
    for key in ("mixup_prob", "mixup_switch_prob", "mixup_mode"):
        if getattr(config, key) != getattr(default, key) and not mixes_images(config):
            raise UserError(f"{KEY}.{key} has no effect without {KEY}.mixup or {KEY}.cutmix; set one of them")
    for key in ("bce_sum", "bce_target_threshold", "bce_pos_weight"):
        if getattr(config, key) != getattr(default, key) and config.kind != "bce":
            raise UserError(f"{KEY}.{key} needs {KEY}.kind bce, not {config.kind}")


def _check_topk(config: ClassificationConfig, num_classes: int) -> None:
    # The loss compares with the (k+1)-th largest logit.
    if config.topk >= num_classes:
        raise UserError(f"{KEY}.topk must be below the {num_classes} classes of the data set, got {config.topk}")
    if config.label_smoothing:
        raise UserError(f"{KEY}.label_smoothing needs {KEY}.kind cross_entropy or bce, not {config.kind}")


def _check_counts(num_classes: int, class_counts: Sequence[int] | None) -> None:
    name = f"{KEY}.kind imbalanced_topk"
    if class_counts is None or len(class_counts) != num_classes:
        given = "none" if class_counts is None else len(class_counts)
        raise UserError(f"{name} needs the number of training images of each of {num_classes} classes, got {given}")
    if min(class_counts) < 1:
        empty = [index for index, count in enumerate(class_counts) if count < 1]
        raise UserError(f"{name} needs at least one training image per class; classes without any: {empty[:5]}")
