"""Attention flow: the maximum flow from the classifier through the attention graph to each patch.

Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020. The tokens between blocks are the nodes of a
graph, and M = (A + I) / row sums gives the capacities of a block's N x N edges. The value of a patch is the maximum
flow from the tokens that the classifier reads, after the last block, to that patch before the first block.

Each patch needs a maximum flow of its own, computed on the CPU. A flow is decided by few edges, so it is first computed
in a small subgraph; edges of the full graph that cross the subgraph's minimum cut are added until there are none left.
Then the cut is a cut of the full graph too, and a flow that fills a cut is maximal. ViT-S at 224 px (197 tokens, 12
blocks) takes 0.4 to 2 s per image on one core, depending on how sharp the attention is; full graphs take 5 to 8 s.

In a deep ViT the maximum flow usually equals a trivial bound: all that the classifier sends (1 in total), or all that
the first block reads of the patch (the column sum of its M). The map then shows nothing of the blocks above; in DINOv2
ViT-S/14 this held for all 256 patches of a photograph.

Shape suffixes: L blocks (last block first), B images, N tokens. Levels of nodes: 0 after the last block, L before the
first.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from common.transfer import on_device, on_host
from explain.attention_capture import record
from explain.explained_model import ExplainedModel
from explain.rollout import Fusion, fuse_heads, require_averages
from explain.types import METHODS, Explainer

if TYPE_CHECKING:
    from scipy.sparse import csr_array  # slow to import, and needed by this method only

SCALE = 2**30
"""Capacity 1 as an integer, as scipy wants int32. Capacities are rounded to 1 / SCALE; flows are then exact."""


@METHODS.register("attention_flow")
@dataclass(frozen=True)
class AttentionFlow(Explainer):
    """Maximum flow through the attention graph, in [0, 1]. Slow: see the module."""

    head_fusion: Fusion = "mean"
    head: int | None = None
    """Use this head of every block alone, from 0. None: all, fused."""

    class_specific: ClassVar[bool] = False
    drops_hidden: ClassVar[bool] = True

    def check(self, explained: ExplainedModel) -> None:
        """Raise UserError if attention cannot be read, or is no average of tokens."""
        super().check(explained)
        require_averages(explained)

    def maps(self, explained: ExplainedModel, images: Tensor, targets: Tensor | None) -> Tensor:
        """See `Explainer.maps`; class-agnostic, so `targets` is unused."""
        with torch.no_grad(), record(explained.blocks) as capture:
            explained.logits(images)
        last_first = capture.by_block()[::-1]
        fused_LBNN = torch.stack([fuse_heads(block, self.head_fusion, head=self.head) for block in last_first])
        M_LBNN = fused_LBNN + torch.eye(fused_LBNN.shape[-1], device=images.device)
        M_LBNN /= M_LBNN.sum(-1, keepdim=True)
        weights = explained.readout_row(fused_LBNN[0]), M_LBNN.transpose(0, 1)
        entry_BN, M_BLNN = (capacities.numpy() for capacities in on_host(_capacities(each) for each in weights))
        graphs = [FlowGraph(*pair) for pair in zip(entry_BN, M_BLNN, strict=True)]
        prefix = explained.num_prefix
        flows = [[0] * prefix + [graph.flow_to(i) for i in range(prefix, len(graph.entry))] for graph in graphs]
        return explained.on_grid(on_device(flows, images.device, fused_LBNN.dtype) / SCALE, images)


def _capacities(weights: Tensor) -> Tensor:
    return (weights.double() * SCALE).round().int().contiguous()


@dataclass(frozen=True)
class FlowGraph:
    """One image's capacities, int32. An edge between two levels is numbered by its index in `blocks[:-1].ravel()`."""

    entry: np.ndarray
    """[N]: from the classifier to each token after the last block."""
    blocks: np.ndarray
    """[L, N, N], last block first: from the row's token, above the block, to the column's token, below it."""

    def flow_to(self, token: int) -> int:
        """Maximum flow from the classifier to `token` before the first block, in 1 / SCALE."""
        from scipy.sparse.csgraph import maximum_flow

        used = self._first_edges(token)
        while True:
            graph = self._subgraph(np.flatnonzero(used), token)
            result = maximum_flow(graph, source=graph.shape[0] - 1, sink=graph.shape[0] - 2)
            crossing = self._crossing_edges(graph - result.flow)
            if used[crossing].all():  # the subgraph's minimum cut is one of the full graph
                return int(result.flow_value)
            used[crossing] = True

    def _first_edges(self, token: int) -> np.ndarray:
        """Which edges to start with: all residual connections, all from the first token, all to `token`."""
        used = np.zeros_like(self.blocks[:-1], dtype=bool)
        used[:, np.arange(used.shape[1]), np.arange(used.shape[1])] = True
        used[:, 0] = used[:, :, token] = True
        return used.ravel()

    def _subgraph(self, edges: np.ndarray, token: int) -> "csr_array":
        """Capacities of `edges` between the nodes level * N + token, followed by the sink and the source.

        The first block's edges to `token` lead to the sink, so level L needs no nodes of its own.
        """
        from scipy.sparse import csr_array

        depth, tokens, _ = self.blocks.shape
        sink, source = depth * tokens, depth * tokens + 1
        each = np.arange(tokens)
        above, column = np.divmod(edges, tokens)  # edge number = (level * N + row) * N + column
        rows = np.concatenate([above, each + sink - tokens, np.full(tokens, source)])
        columns = np.concatenate([(above // tokens + 1) * tokens + column, np.full(tokens, sink), each])
        capacities = np.concatenate([self.blocks[:-1].ravel()[edges], self.blocks[-1, :, token], self.entry])
        return csr_array((capacities, (rows, columns)), shape=(source + 1, source + 1))

    def _crossing_edges(self, residual: "csr_array") -> np.ndarray:
        """Edges of the full graph that leave the set of nodes reachable from the source in the `residual` graph."""
        from scipy.sparse.csgraph import breadth_first_order

        depth, tokens, _ = self.blocks.shape
        residual.eliminate_zeros()  # breadth_first_order would follow stored zeros
        reached = np.zeros(residual.shape[0], dtype=bool)
        reached[breadth_first_order(residual, residual.shape[0] - 1, return_predecessors=False)] = True
        reached_LN = reached[:-2].reshape(depth, tokens)
        crossing = self.blocks[:-1].astype(bool) & reached_LN[:-1, :, None] & ~reached_LN[1:, None, :]
        return np.flatnonzero(crossing)
