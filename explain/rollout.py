"""Attention rollout (Abnar and Zuidema 2020): attention multiplied through the layers, the residual path counted in.

Shape legend: B images, H heads, N tokens. The maps are the classifier's row of M_L ... M_1, so only a row vector is
carried, from the last block down; no product of N x N matrices is formed.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from common.errors import UserError
from explain.attention_capture import ALL, Attention, AttentionCapture, exact_product, record
from explain.explained_model import ExplainedModel
from explain.types import METHODS, Explainer

Fusion = Literal["mean", "max", "min"]
FUSIONS: dict[str, Callable[..., Tensor]] = {"mean": torch.mean, "max": torch.amax, "min": torch.amin}
VIT_EXPLAIN_DISCARD = 0.9


@METHODS.register("rollout")
@dataclass(frozen=True)
class Rollout(Explainer):
    """M_l = (heads fused to one matrix, its smallest entries discarded, + I), rows normalised to sum to 1."""

    head_fusion: Fusion = "mean"
    discard_ratio: float | None = None
    """Share of each fused matrix's smallest entries that is set to 0, never class token -> class token. None: 0."""
    start_layer: int | None = None
    """First block that counts, from 0. None: 0."""
    compat: Literal["", "vit-explain", "agcam", "chefer"] = ""
    """vit-explain: row sums divide columns; divided by the maximum; discards 0.9 where none is given. agcam: row sums
    divide columns. chefer: starts at block 1 where no start is given."""

    class_specific: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Raise UserError for options out of range."""
        super().__post_init__()
        check_ratio(self.discard_ratio)
        if self.start_layer is not None and self.start_layer < 0:
            raise UserError(f"--start-layer: {self.start_layer} is below 0, the number of the first block")

    def maps(self, explained: ExplainedModel, images: Tensor, targets: Tensor | None) -> Tensor:
        """See `Explainer.maps`; class-agnostic, so `targets` is unused."""
        with torch.no_grad(), record(explained.vit.blocks) as capture:
            explained.logits(images)
        return self.of_capture(capture, explained, images)

    def of_capture(self, capture: AttentionCapture, explained: ExplainedModel, images: Tensor) -> Tensor:
        """The maps of a recorded forward pass."""
        ratio = VIT_EXPLAIN_DISCARD if self.compat == "vit-explain" else 0.0
        ratio = ratio if self.discard_ratio is None else self.discard_ratio
        start = int(self.compat == "chefer") if self.start_layer is None else self.start_layer
        last_first = (
            discard(fused_heads(layer, self.head_fusion), ratio, keep_first=True)
            for layer in reversed(capture.by_block()[start:])
        )
        maps = roll_out(last_first, explained, images, by_column=self.compat in ("vit-explain", "agcam"))
        return over_maximum(maps) if self.compat == "vit-explain" else maps


def fused_heads(attentions: Sequence[Attention], head_fusion: Fusion, rows: slice = ALL) -> Tensor:
    """One matrix [B, R, N] of all heads of a block, those of parallel branches too."""
    heads = [attention.weights(rows) for attention in attentions]
    return FUSIONS[head_fusion](heads[0] if len(heads) == 1 else torch.cat(heads, dim=1), dim=1)  # cat would copy


def check_ratio(discard_ratio: float | None) -> None:
    """Raise UserError for a share out of range."""
    if discard_ratio is not None and not 0 <= discard_ratio <= 1:
        raise UserError(f"--discard-ratio: {discard_ratio} does not lie in [0, 1]")


def discard(matrix_BNN: Tensor, ratio: float, keep_first: bool) -> Tensor:
    """Each image's floor(N^2 ratio) smallest entries set to 0 (all that tie with the last of them too).

    `keep_first`: the entry (0, 0), class token -> class token, stays whatever its size.
    """
    flat = matrix_BNN.flatten(1)
    count = int(flat.shape[1] * ratio)
    if count == 0:
        return matrix_BNN
    dropped = matrix_BNN <= flat.kthvalue(count, dim=1).values[:, None, None]
    if keep_first:
        dropped[:, 0, 0] = False
    return matrix_BNN.masked_fill(dropped, 0)


def readout_row(explained: ExplainedModel, like_BNN: Tensor) -> Tensor:
    """[B, N] weights, summing to 1, of the tokens that the classifier reads: the class token, or all patches alike."""
    row = like_BNN.new_zeros(like_BNN.shape[0], like_BNN.shape[-1])
    row[:, explained.rows()] = 1
    return row / row.sum(1, keepdim=True)


def roll_out(last_first: Iterable[Tensor], explained: ExplainedModel, images: Tensor, by_column: bool) -> Tensor:
    """Classifier's row of the product of M = (F + I) / row sums over fused matrices F [B, N, N], last block first.

    `by_column`: the published slip, sums of row j dividing column j. Returns the patches, [B, h, w].
    """
    row: Tensor | None = None
    for fused in last_first:
        row = readout_row(explained, fused) if row is None else row
        sums = fused.sum(-1) + 1
        row = _times(row, fused) / sums if by_column else _times(row / sums, fused)
    if row is None:
        raise UserError("--start-layer: the model has no block from there on")
    return row[:, explained.num_prefix :].unflatten(1, explained.grid(images))


def _times(row_BN: Tensor, fused_BNN: Tensor) -> Tensor:
    """row (F + I)."""
    return exact_product(row_BN.unsqueeze(1), fused_BNN.transpose(1, 2)).squeeze(1) + row_BN


def over_maximum(maps: Tensor) -> Tensor:
    """Each map divided by its maximum; a map of zeros stays zeros."""
    top = maps.flatten(1).amax(1)[:, None, None]
    return maps / top.where(top != 0, torch.ones_like(top))
