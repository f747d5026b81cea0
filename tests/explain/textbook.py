"""The attention methods in their slow textbook form: explicit attention, autograd through it, one image at a time."""

import copy
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from explain.explained_model import ExplainedModel
from models.two_stage import TwoStageModel


@dataclass(frozen=True)
class Layer:
    """One block of one image, heads (of parallel branches too) first: S, A, G = dy/dA, E = dy/dS, each [H, N, N]."""

    S: Tensor
    A: Tensor
    G: Tensor
    E: Tensor


class Softmaxes(TorchFunctionMode):
    """Every attention that timm computes explicitly: its scores and its weights, in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.Tensor.softmax and result.ndim == 4 and result.shape[-1] == result.shape[-2]:
            self.found.append((args[0], result))
        return result


def explicit_layers(
    explained: ExplainedModel, image: Tensor, target: int | None, detach_inputs: bool = False
) -> list[Layer]:
    """All blocks for the one image [1, 3, H, W] that the explained was made for.

    `detach_inputs`: AGCAM's graph, in which attention modules read detached tokens.
    """
    vit, logits = _explicit_copy(explained)
    with _detached_inputs(vit, detach_inputs), Softmaxes() as softmaxes, torch.enable_grad():
        y = logits(image.clone().requires_grad_())[0]
        y = y[int(y.argmax()) if target is None else target]
    found = softmaxes.found
    gradients = torch.autograd.grad(y, [t for pair in found for t in pair], allow_unused=True)
    per_block = len(found) // len(vit.blocks)
    layers = []
    for first in range(0, len(found), per_block):
        branches = range(first, first + per_block)
        layers.append(
            Layer(
                S=torch.cat([found[b][0][0] for b in branches]).detach(),
                A=torch.cat([found[b][1][0] for b in branches]).detach(),
                G=torch.cat([_or_zero(gradients[2 * b + 1], found[b][1])[0] for b in branches]),
                E=torch.cat([_or_zero(gradients[2 * b], found[b][0])[0] for b in branches]),
            )
        )
    return layers


def _or_zero(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient


def _explicit_copy(explained: ExplainedModel) -> tuple[Any, Any]:
    """The explained's ViT and its logits in a copy of the model that never fuses attention."""
    module: Any = copy.deepcopy(explained.module)
    for part in module.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = False
    if not isinstance(module, TwoStageModel):
        vit = module if explained.vit is explained.module else module.backbone
        return vit, (module if vit is module else lambda x: module(x).logits)
    if explained.selection is None:
        return module.stage_1.backbone, lambda x: module.select(x).class_logits
    module.stage_2.path = "dense"
    return module.stage_2.backbone, lambda x: module.predict(x, explained.selection)


@contextmanager
def _detached_inputs(vit: Any, active: bool) -> Iterator[None]:
    parts = [part for part in vit.blocks.modules() if hasattr(part, "fused_attn")] if active else []
    handles = [part.register_forward_pre_hook(lambda _, args: (args[0].detach(), *args[1:])) for part in parts]
    yield
    for handle in handles:
        handle.remove()


def fuse(heads: Tensor, how: str) -> Tensor:
    """[H, N, N] -> [N, N]."""
    return {"mean": heads.mean(0), "max": heads.max(0).values, "min": heads.min(0).values}[how]


def dropped(F: Tensor, ratio: float, keep_first: bool) -> Tensor:
    """The floor(N^2 ratio) smallest entries set to 0, one by one; `keep_first`: entry (0, 0) is taken off that list."""
    flat = F.flatten().clone()
    smallest = flat.argsort()[: int(len(flat) * ratio)].tolist()
    for index in smallest:
        if index != 0 or not keep_first:
            flat[index] = 0
    return flat.view_as(F)


def product(matrices: list[Tensor], norm: str) -> Tensor:
    """M_L ... M_1 of M = (F + I) / 2, normalised by "row" or, as published, by "column"."""
    result = torch.eye(len(matrices[0]), dtype=matrices[0].dtype)
    for F in matrices:
        M = (F + torch.eye(len(F), dtype=F.dtype)) / 2
        sums = M.sum(1)
        M = torch.stack([M[:, j] / (sums if norm == "row" else sums[j]) for j in range(len(F))], dim=1)
        result = M @ result
    return result


def read_out(R: Tensor, explained: ExplainedModel) -> Tensor:
    """Mean of the rows of the tokens that the classifier reads, patch columns: [N - P].

    Of a stage 2 that averages patches: of the visible ones, weighted by a soft mask.
    """
    selection, rows = explained.selection, R[explained.rows()]
    if selection is None or explained.readout == "class_token":
        return rows.mean(0)[explained.num_prefix :]
    seen = (selection.mask if selection.gate is None else selection.gate).flatten().to(R)
    return (rows * seen[:, None] / seen.sum()).sum(0)[explained.num_prefix :]


def max_flow(capacities: dict[tuple[Any, Any], int], source: Any, sink: Any) -> int:
    """Ford and Fulkerson, with shortest augmenting paths."""
    left = dict(capacities)
    for a, b in capacities:
        left.setdefault((b, a), 0)
    neighbours: dict[Any, list[Any]] = {}
    for a, b in left:
        neighbours.setdefault(a, []).append(b)
    total = 0
    while (path := _shortest_path(left, neighbours, source, sink)) is not None:
        amount = min(left[edge] for edge in path)
        for a, b in path:
            left[a, b] -= amount
            left[b, a] += amount
        total += amount
    return total


def _shortest_path(left: Any, neighbours: Any, source: Any, sink: Any) -> list[tuple[Any, Any]] | None:
    came: dict[Any, Any] = {source: None}
    waiting = deque([source])
    while waiting and sink not in came:
        node = waiting.popleft()
        for other in neighbours[node]:
            if other not in came and left[node, other] > 0:
                came[other] = node
                waiting.append(other)
    if sink not in came:
        return None
    path, node = [], sink
    while came[node] is not None:
        path.append((came[node], node))
        node = came[node]
    return path


def sdpa_modules(module: nn.Module) -> list[nn.Module]:
    """Modules that choose between fused and explicit attention."""
    return [part for part in module.modules() if hasattr(part, "fused_attn")]
