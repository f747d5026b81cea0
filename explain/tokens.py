"""Tokens that the classifier reads, and maps of the patch tokens.

Shape suffixes: B images, N tokens (prefix tokens first), h x w patch grid.
"""

from torch import Tensor

from explain.explained_model import ExplainedModel


def readout_row(explained: ExplainedModel, like_BNN: Tensor) -> Tensor:
    """[B, N] weights that sum to 1, equal over the tokens that the classifier reads: class token or all patches."""
    row_BN = like_BNN.new_zeros(like_BNN.shape[0], like_BNN.shape[-1])
    row_BN[:, explained.rows()] = 1
    return row_BN / row_BN.sum(1, keepdim=True)


def patch_grid(tokens: Tensor, explained: ExplainedModel, images: Tensor) -> Tensor:
    """Values of all tokens [B, N, ...] -> those of the patches [B, h, w, ...]; prefix tokens are dropped."""
    return tokens[:, explained.num_prefix :].reshape(len(tokens), *explained.grid(images), *tokens.shape[2:])
