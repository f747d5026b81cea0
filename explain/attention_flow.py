"""Attention flow (Abnar and Zuidema 2020, section 4.2): how much can flow from the classifier down to each patch.

The tokens between the blocks are nodes, M = (A + I) / row sums are the capacities of a block's N x N edges, and a patch
gets the maximum flow from what the classifier reads, after the last block, to it, before the first one.

That is one maximum flow for every patch, so the method is slow and runs on the CPU. Few edges decide a flow: it is
found in a small network first, and the edges of the full one that cross its minimum cut are added until none is left.
The small network's flow is then a flow of the full network that fills a cut of it, hence maximal. ViT-S at 224 px (197
tokens, 12 blocks) takes 0.4 to 2 s an image on one core, by how sharp its attention is; full networks take 5 to 8 s.

In a deep ViT the flow is as a rule the trivial bound: what the classifier sends (1 in all), or what the first block
reads of the patch (the column sum of its M), whichever is less. Then nothing of the blocks above shows in the map: so
it was for all 256 patches of a photograph in DINOv2's ViT-S/14.

Shape legend: L blocks, N tokens. Levels of nodes run from 0 (after the last block) to L (before the first one).
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow
from torch import Tensor

from explain.attention_capture import record
from explain.explained_model import ExplainedModel
from explain.rollout import Fusion, fused_heads, readout_row
from explain.types import METHODS, Explainer

SCALE = 2**30
"""Capacity 1 as an integer; capacities are rounded to 1 / SCALE, and flows are exact for the rounded ones."""


@METHODS.register("attention_flow")
@dataclass(frozen=True)
class AttentionFlow(Explainer):
    """Maximum flow through the attention graph, in [0, 1]. Seconds per image: see the module."""

    head_fusion: Fusion = "mean"

    class_specific: ClassVar[bool] = False

    def maps(self, explained: ExplainedModel, images: Tensor, targets: Tensor | None) -> Tensor:
        """See `Explainer.maps`; class-agnostic, so `targets` is unused."""
        with torch.no_grad(), record(explained.vit.blocks) as capture:
            explained.logits(images)
        fused_LBNN = torch.stack([fused_heads(layer, self.head_fusion) for layer in reversed(capture.by_block())])
        passed_LBNN = fused_LBNN + torch.eye(fused_LBNN.shape[-1], device=images.device)
        passed_LBNN /= passed_LBNN.sum(-1, keepdim=True)
        entry_BN = _capacities(readout_row(explained, fused_LBNN[0]))
        networks = [Network(*pair) for pair in zip(entry_BN, _capacities(passed_LBNN.transpose(0, 1)), strict=True)]
        flows = [[network.flow_to(patch) for patch in range(explained.num_prefix, len(network.entry))]
                 for network in networks]  # fmt: skip
        return (fused_LBNN.new_tensor(flows) / SCALE).unflatten(1, explained.grid(images))


def _capacities(weights: Tensor) -> np.ndarray:
    return (weights.double() * SCALE).round().int().contiguous().cpu().numpy()


@dataclass(frozen=True)
class Network:
    """One image's capacities, int32. An edge between blocks is named by its index in `blocks[:-1].ravel()`."""

    entry: np.ndarray
    """[N]: what the classifier may send to each token after the last block."""
    blocks: np.ndarray
    """[L, N, N], last block first: from row, above the block, to column, below it."""

    def flow_to(self, token: int) -> int:
        """Maximum flow from the classifier to `token` before the first block, in 1 / SCALE."""
        used = self._first_edges(token)
        while True:
            graph = self._graph(np.flatnonzero(used), token)
            result = maximum_flow(graph, source=graph.shape[0] - 1, sink=graph.shape[0] - 2)
            crossing = self._crossing(graph - result.flow)
            if used[crossing].all():
                return int(result.flow_value)
            used[crossing] = True

    def _first_edges(self, token: int) -> np.ndarray:
        """Flags of the residual path of every token, everything out of the first token, everything into `token`."""
        used = np.zeros_like(self.blocks[:-1], dtype=bool)
        used[:, np.arange(used.shape[1]), np.arange(used.shape[1])] = True
        used[:, 0] = used[:, :, token] = True
        return used.ravel()

    def _graph(self, edges: np.ndarray, token: int) -> csr_array:
        """Capacities between nodes: level * N + token, then the sink, then the source."""
        depth, tokens, _ = self.blocks.shape
        sink, source = depth * tokens, depth * tokens + 1
        each = np.arange(tokens)
        above, column = np.divmod(edges, tokens)
        rows = np.concatenate([above, each + sink - tokens, np.full(tokens, source)])
        columns = np.concatenate([(above // tokens + 1) * tokens + column, np.full(tokens, sink), each])
        capacities = np.concatenate([self.blocks[:-1].ravel()[edges], self.blocks[-1, :, token], self.entry])
        return csr_array((capacities, (rows, columns)), shape=(source + 1, source + 1))

    def _crossing(self, residual: csr_array) -> np.ndarray:
        """Edges of the full network that lead out of what the source still reaches in `residual` capacities."""
        depth, tokens, _ = self.blocks.shape
        residual.eliminate_zeros()
        reached = np.zeros(residual.shape[0], dtype=bool)
        reached[breadth_first_order(residual, residual.shape[0] - 1, return_predecessors=False)] = True
        levels = reached[:-2].reshape(depth, tokens)
        found = [np.empty(0, dtype=np.int64)]
        for level, (inside, below) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
            leaving = np.ix_(np.flatnonzero(inside), np.flatnonzero(~below))
            rows, columns = np.nonzero(self.blocks[level][leaving])
            found.append((level * tokens + leaving[0][rows, 0]) * tokens + leaving[1][0, columns])
        return np.concatenate(found)
