"""What a metric sees of a model, and the interface of every metric."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from datasets.types import Batch


@dataclass(frozen=True)
class Prediction:
    """The outputs of a model for one batch; those that a model does not have are None."""

    logits: Tensor
    """[B, C], the final classification."""
    stage_1_logits: Tensor | None = None
    """[B, C], mean over parts of the stage-1 class scores."""
    mask: Tensor | None = None
    """[B, h, w] bool on the patch grid: the patches that stage 2 saw."""
    pixels: Tensor | None = None
    """[B, H, W] bool: the pixels of these patches that stage 2 saw; None: all."""
    maps: Tensor | None = None
    """[B, K+1, h, w] part maps; the last channel is the background."""
    empty: Tensor | None = None
    """[B] bool: stage 1 kept nothing (before any fallback)."""

    @property
    def visible(self) -> Tensor | None:
        """What stage 2 saw, as fine as it is known: `pixels` or else `mask`."""
        return self.mask if self.pixels is None else self.pixels


class Metric(Protocol):
    """Accumulates over batches; the results do not depend on the batch size."""

    def update(self, batch: Batch, prediction: Prediction) -> None: ...

    def compute(self) -> dict[str, float]: ...


class Images(Protocol):
    """Normalised images [M, 3, H, W] that are read in slices: a tensor, or images that are made when they are read."""

    def __len__(self) -> int: ...

    def __getitem__(self, piece: slice, /) -> Tensor: ...


@dataclass(frozen=True)
class Explanation:
    """Heat maps of one batch and the model they explain, as the map metrics see them."""

    maps: Tensor
    """[B, h, w] float on the patch grid or at pixels, unnormalised; nan where a method failed."""
    logits: Tensor
    """[B, C], the model's logits for the clean images."""
    predict: Callable[[Tensor], Tensor]
    """Normalised images [M, 3, H, W], any M -> logits [M, C], without gradients; called with perturbed images."""
    of_batch: dict[Hashable, Tensor] = field(default_factory=dict)
    """What `once` has computed. Explanations of the same batch and model may share it."""
    predict_lazily: Callable[[Images], Tensor] | None = None
    """`predict` for images that need not exist together, if it can choose how many it reads at a time."""

    def predict_all(self, images: Images, at_once: int | None) -> Tensor:
        """Logits [M, C]; `at_once`: the largest number of images that `predict` is called with.

        None: as many as `predict_lazily` chooses; without it, as many as the batch has.
        """
        if at_once is None and self.predict_lazily is not None:
            return self.predict_lazily(images)
        at_once = at_once or len(self.logits)
        pieces = (slice(start, start + at_once) for start in range(0, len(images), at_once))
        return torch.cat([self.predict(images[piece]) for piece in pieces])

    def once(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """What does not depend on the maps, computed on first use; `key` must hold everything that it depends on."""
        if key not in self.of_batch:
            self.of_batch[key] = compute()
        return self.of_batch[key]
