"""Attention flow against a maximum flow computed by the textbook on the whole graph."""

from typing import Any

import numpy as np
import pytest
import torch

from common.errors import UserError
from explain import explain
from explain.attention_flow import SCALE, AttentionFlow, FlowGraph
from tests.explain.small import CASES
from tests.explain.textbook import explicit_layers, fuse, max_flow


def whole_graph(graph: FlowGraph, token: int) -> dict[tuple[Any, Any], int]:
    """Every edge of the graph, and the one to the sink below `token`."""
    depth, tokens, _ = graph.blocks.shape
    edges: dict[tuple[Any, Any], int] = {
        ((level, i), (level + 1, j)): int(graph.blocks[level, i, j])
        for level in range(depth)
        for i in range(tokens)
        for j in range(tokens)
    }
    edges |= {("classifier", (0, i)): int(graph.entry[i]) for i in range(tokens)}
    return edges | {((depth, token), "patch"): 2 * SCALE}


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("class_token", [True, False])
def test_exact_on_random_graphs(depth: int, class_token: bool) -> None:
    """Capacities of all sizes, zeros among them, so that minimum cuts lie anywhere."""
    rng = np.random.default_rng(depth)
    inner = 0
    for _ in range(15):
        blocks = (SCALE * rng.random((depth, 5, 5)) ** rng.integers(1, 12)).astype(np.int32)
        blocks[rng.random(blocks.shape) < 0.3] = 0
        entry = np.array([SCALE, 0, 0, 0, 0] if class_token else [SCALE // 5] * 5, dtype=np.int32)
        graph = FlowGraph(entry, blocks)
        for token in range(5):
            flow = graph.flow_to(token)
            assert flow == max_flow(whole_graph(graph, token), "classifier", "patch")
            inner += flow < min(entry.sum(), blocks[-1, :, token].sum())
    assert inner or depth == 1, "no minimum cut lay between the ends"


@pytest.mark.parametrize("name", ["dino", "gap", "stage_2", "rope_gap", "stage_2_mean"])
@pytest.mark.parametrize("fusion", ["mean", "max"])
def test_equals_the_textbook(name: str, fusion: str) -> None:
    case = CASES[name]
    model, x = case.model(), case.images(2)
    found = explain(model, x, "attention_flow", head_fusion=fusion)[1].flatten().tolist()
    explained = case.explained(model, x[1:])
    residual = [fuse(layer.A, fusion) for layer in reversed(explicit_layers(explained, x[1:], None))]
    residual = [F + torch.eye(len(F)) for F in residual]
    blocks = torch.stack([M / M.sum(1, keepdim=True) for M in residual]).double()
    entry = torch.zeros(blocks.shape[-1], dtype=torch.float64)
    entry[explained.rows()] = 1 / len(entry[explained.rows()])
    graph = FlowGraph(*((t * SCALE).round().numpy().astype(np.int32) for t in (entry, blocks)))
    for patch in range(0, len(found), 3):
        edges = whole_graph(graph, explained.num_prefix + patch)
        assert found[patch] == pytest.approx(max_flow(edges, "classifier", "patch") / SCALE, abs=1e-5)


def test_a_chain_by_hand() -> None:
    """Two blocks, two tokens: all flow is 1/2 each way, so the second token gets what both paths let through."""
    half, zero, one = SCALE // 2, 0, SCALE
    graph = FlowGraph(
        np.array([one, zero], dtype=np.int32),
        np.array([[[half, half], [zero, one]], [[3 * SCALE // 4, SCALE // 4], [zero, one]]], dtype=np.int32),
    )
    assert graph.flow_to(1) == half + SCALE // 4
    assert graph.flow_to(0) == half


def test_flow_is_a_fraction() -> None:
    maps = explain(CASES["class_token"].model(), CASES["class_token"].images(), "attention_flow")
    assert float(maps.min()) > 0 and float(maps.max()) <= 1


def test_refused_fusion() -> None:
    with pytest.raises(UserError, match="--head-fusion"):
        AttentionFlow(head_fusion="sum")  # type: ignore[arg-type]
