"""Attention rollout.

Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020:

    R = M_L ... M_1,  M_l = rows of (A_l + I), normalised to sum to 1;  map = the classifier's row of R

A_l is the attention of block l with its heads fused, I the residual connection. Only the classifier's row is computed,
from the last block to the first: vector times matrix instead of products of N x N matrices.

Shape suffixes: B images, H heads, R rows, N tokens.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from timm.models.cait import TalkingHeadAttn
from torch import Tensor

from common.errors import UserError
from explain.attention_capture import ALL, Attention, AttentionCapture, exact_product, record
from explain.explained_model import ExplainedModel
from explain.types import METHODS, Explainer

Fusion = Literal["mean", "max", "min"]
FUSIONS: dict[str, Callable[..., Tensor]] = {"mean": torch.mean, "max": torch.amax, "min": torch.amin}
VIT_EXPLAIN_DISCARD = 0.9
MIXED = (
    "mixes its heads after the softmax (talking heads), so its rows are no averages: they can be negative; choose "
    "raw_attention, grad_rollout, agcam or a method without attention"
)


@METHODS.register("rollout")
@dataclass(frozen=True)
class Rollout(Explainer):
    """Rollout of attention with fused heads, optionally without each matrix's smallest entries."""

    head_fusion: Fusion = "mean"
    discard_ratio: float | None = None
    """Fraction of each fused matrix's entries, the smallest, set to 0 (never class token -> class token). None: 0."""
    start_layer: int | None = None
    """First block of the product, from 0. None: 0."""
    compat: Literal["", "vit-explain", "agcam", "chefer"] = ""
    """vit-explain: columns are divided by row sums, maps by their maximum; discard_ratio defaults to 0.9. agcam:
    columns are divided by row sums. chefer: start_layer defaults to 1."""
    head: int | None = None
    """Use this head of every block alone, from 0. None: all, fused."""

    class_specific: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Raise UserError for options out of range."""
        super().__post_init__()
        check_ratio(self.discard_ratio)
        check_start(self.start_layer)

    def check(self, explained: ExplainedModel) -> None:
        """Raise UserError if attention cannot be read, or is no average of tokens."""
        super().check(explained)
        require_averages(explained)

    @property
    def drops_hidden(self) -> bool:
        """Unless entries of the whole matrix are counted, hidden patches included."""
        return self._ratio == 0

    @property
    def _ratio(self) -> float:
        return ratio_or_default(self.discard_ratio, self.compat)

    def maps(self, explained: ExplainedModel, images: Tensor, targets: Tensor | None) -> Tensor:
        """See `Explainer.maps`; class-agnostic, so `targets` is unused."""
        with torch.no_grad(), record(explained.blocks) as capture:
            explained.logits(images)
        return self.maps_from(capture, explained, images)

    def maps_from(self, capture: AttentionCapture, explained: ExplainedModel, images: Tensor) -> Tensor:
        """Maps from the capture of a forward pass."""
        start = int(self.compat == "chefer") if self.start_layer is None else self.start_layer
        last_first = (  # a generator: one N x N matrix at a time
            discard(fuse_heads(attentions, self.head_fusion, head=self.head), self._ratio, keep_first=True)
            for attentions in reversed(capture.by_block()[start:])
        )
        by_column = self.compat in ("vit-explain", "agcam")
        maps = roll_out(last_first, explained, images, by_column, keep_identity=True)
        return divide_by_maximum(maps) if self.compat == "vit-explain" else maps


def fuse_heads(
    attentions: Sequence[Attention], head_fusion: Fusion, rows: slice = ALL, head: int | None = None
) -> Tensor:
    """All heads of a block (of all its parallel branches) fused to one matrix [B, R, N], or `head` alone.

    Raises UserError for a head that does not exist.
    """
    if any(attention.mixed_weights is not None for attention in attentions):
        raise UserError(f"{attentions[0].name} {MIXED}")
    heads = [attention.weights(rows) for attention in attentions]
    heads_BHRN = heads[0] if len(heads) == 1 else torch.cat(heads, dim=1)  # cat would copy a single one too
    if head is None:
        return FUSIONS[head_fusion](heads_BHRN, dim=1)
    if not 0 <= head < heads_BHRN.shape[1]:
        raise UserError(f"--head: {head}; the model has heads 0 to {heads_BHRN.shape[1] - 1}")
    return heads_BHRN[:, head]


def require_averages(explained: ExplainedModel) -> None:
    """Raise UserError if a block mixes its heads after the softmax."""
    for index, block in enumerate(explained.blocks):
        if any(isinstance(part, TalkingHeadAttn) for part in block.modules()):
            raise UserError(f"the attention of blocks.{index} {MIXED}")


def check_ratio(discard_ratio: float | None) -> None:
    """Raise UserError for a fraction outside [0, 1]."""
    if discard_ratio is not None and not 0 <= discard_ratio <= 1:
        raise UserError(f"--discard-ratio: {discard_ratio} is not in [0, 1]")


def ratio_or_default(discard_ratio: float | None, compat: str) -> float:
    """The fraction to discard; where none is given, that of `compat`."""
    if discard_ratio is not None:
        return discard_ratio
    return VIT_EXPLAIN_DISCARD if compat == "vit-explain" else 0.0


def check_start(start_layer: int | None) -> None:
    """Raise UserError for a negative block."""
    if start_layer is not None and start_layer < 0:
        raise UserError(f"--start-layer: {start_layer} is negative; blocks are numbered from 0")


def discard(matrix_BNN: Tensor, ratio: float, keep_first: bool) -> Tensor:
    """Set each image's floor(N² ratio) smallest entries to 0, and all entries equal to the largest of them.

    `keep_first`: keep the entry (0, 0), class token -> class token, whatever its size.
    """
    flat = matrix_BNN.flatten(1)
    count = int(flat.shape[1] * ratio)
    if count == 0:
        return matrix_BNN
    if torch.are_deterministic_algorithms_enabled():  # on a GPU, kthvalue is not; the value is the same
        largest_B = flat.sort(dim=1).values[:, count - 1]
    else:
        largest_B = flat.kthvalue(count, dim=1).values
    dropped = matrix_BNN <= largest_B[:, None, None]
    if keep_first:
        dropped[:, 0, 0] = False
    return matrix_BNN.masked_fill(dropped, 0)


def roll_out(
    last_first: Iterable[Tensor], explained: ExplainedModel, images: Tensor, by_column: bool, keep_identity: bool
) -> Tensor:
    """The classifier's row of the product of M = (F + I) / row sums, on the patch grid [B, h, w].

    `last_first`: the fused matrices F [B, N, N], last block first. `by_column`: as in published code, where the sum of
    row j divides column j. `keep_identity`: False subtracts the classifier's row of I, which is the same for all
    patches. It is 0 for a class token, and otherwise 1 / N, which float32 could not add to much smaller values. Raises
    UserError if there is no matrix.
    """
    # The row is read + added: the classifier's row of I, and what attention adds to it, to full precision.
    read_BN = added_BN = None
    for F_BNN in last_first:
        F_BNN = explained.over_all_tokens(F_BNN, images)
        if read_BN is None or added_BN is None:
            read_BN = explained.readout_row(F_BNN)
            added_BN = torch.zeros_like(read_BN)
        excess_BN = F_BNN.sum(-1)  # of the row sums above 1
        sums_BN = excess_BN + 1
        row_BN = read_BN + added_BN
        moved_BN = _times(row_BN, F_BNN) / sums_BN if by_column else _times(row_BN / sums_BN, F_BNN)
        added_BN = moved_BN + (added_BN - read_BN * excess_BN) / sums_BN
    if read_BN is None or added_BN is None:
        raise UserError("--start-layer: the model has no block from there on")
    return explained.on_grid(read_BN + added_BN if keep_identity else added_BN, images)


def _times(row_BN: Tensor, fused_BNN: Tensor) -> Tensor:
    return exact_product(row_BN.unsqueeze(1), fused_BNN.transpose(1, 2)).squeeze(1)


def divide_by_maximum(maps: Tensor) -> Tensor:
    """Each map divided by its maximum; a map of zeros stays zero."""
    maximum = maps.flatten(1).amax(1)[:, None, None]
    return maps / maximum.where(maximum != 0, torch.ones_like(maximum))
