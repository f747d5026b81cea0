"""The part terms as plain Python loops over their formulas, and random maps to test them on."""

import itertools
import math

import torch
from torch import Tensor


def random_maps(batch: int = 2, parts_: int = 3, grid: tuple[int, int] = (4, 6), seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, parts_ + 1, *grid, generator=generator, dtype=torch.float64)
    return (2 * logits).softmax(dim=1)


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def pooled(channel: Tensor) -> list[list[float]]:
    """3x3 means of one channel [h, w], without padding."""
    height, width = channel.shape
    return [
        [mean(channel[i + a, j + b].item() for a in range(3) for b in range(3)) for j in range(width - 2)]
        for i in range(height - 2)
    ]


def peak(channel: Tensor) -> float:
    return max(max(row) for row in pooled(channel))


def presence(maps: Tensor, kind: str, beta: float = 0.1) -> float:
    batch, foreground = len(maps), range(maps.shape[1] - 1)
    if kind in ("original", "soft_constraint"):
        p = [max(peak(maps[b, k]) for b in range(batch)) for k in foreground]
        return 1 - mean(p) if kind == "original" else mean((1 - x) * ((1 - beta) * x + beta) for x in p)
    t = [math.tanh(sum(peak(maps[b, k]) for b in range(batch))) for k in foreground]
    return mean(-math.log(x) for x in t) if kind == "tanh" else mean(1 - x for x in t)


def enforced(maps: Tensor, kind: str) -> float:
    if kind != "enforced_presence":
        mass = [mean(maps[b, -1].flatten().tolist()) for b in range(len(maps))]
        function = {"log": lambda m: -math.log(m), "linear": lambda m: 1 - m, "mse": lambda m: (1 - m) ** 2}[kind]
        return mean(map(function, mass))
    values = []
    for image in maps:
        mean3 = pooled(image[-1])
        rows, columns = len(mean3), len(mean3[0])
        rho = [
            [(2 * i / (rows - 1) - 1) ** 2 + (2 * j / (columns - 1) - 1) ** 2 for j in range(columns)]
            for i in range(rows)
        ]
        largest = max(map(max, rho))
        best = max(mean3[i][j] * rho[i][j] / largest for i in range(rows) for j in range(columns))
        values.append(-math.log(best))
    return mean(values)


def total_variation(maps: Tensor) -> float:
    batch, channels, height, width = maps.shape
    total = 0.0
    for b, k, i, j in itertools.product(*map(range, maps.shape)):
        if i + 1 < height:
            total += abs(maps[b, k, i + 1, j] - maps[b, k, i, j]).item()
        if j + 1 < width:
            total += abs(maps[b, k, i, j + 1] - maps[b, k, i, j]).item()
    return total / (batch * height * width)


def entropy(maps: Tensor) -> float:
    batch, _, height, width = maps.shape
    return -sum(a * math.log(a) for a in maps.flatten().tolist()) / (batch * height * width)


def concentration(maps: Tensor) -> float:
    batch, channels, height, width = maps.shape
    values = []
    for b, k in itertools.product(range(batch), range(channels - 1)):
        cells = [(i, j, maps[b, k, i, j].item()) for i in range(height) for j in range(width)]
        mass = sum(a for _, _, a in cells)
        ci, cj = sum(i * a for i, _, a in cells) / mass, sum(j * a for _, j, a in cells) / mass
        values += [a * (((ci - i) / height) ** 2 + ((cj - j) / width) ** 2) for i, j, a in cells]
    return mean(values)


def cosine(first: list[float], second: list[float]) -> float:
    norms = [max(math.sqrt(sum(x * x for x in v)), 1e-8) for v in (first, second)]
    return sum(x * y for x, y in zip(first, second, strict=True)) / (norms[0] * norms[1])


def equivariance(maps: Tensor, back: Tensor, valid: Tensor) -> float:
    return 1 - mean(
        cosine(maps[b, k][valid[b]].tolist(), back[b, k][valid[b]].tolist())
        for b in range(len(maps))
        for k in range(maps.shape[1] - 1)
    )


def orthogonality(features: Tensor, kind: str) -> float:
    values = []
    for image in features.tolist():  # D rows of K+1 numbers
        vectors = image if kind == "channels" else [list(column) for column in zip(*image, strict=True)]
        for (i, v), (j, w) in itertools.product(enumerate(vectors), repeat=2):
            values.append((cosine(v, w) - (i == j)) ** 2)
    return mean(values)


def border(logits: Tensor, ring_weight: float) -> float:
    batch, _, height, width = logits.shape
    values = []
    for b, i, j in itertools.product(range(batch), range(height), range(width)):
        z = math.log(sum(math.exp(x) for x in logits[b, :-1, i, j].tolist())) - logits[b, -1, i, j].item()
        on_ring = i in (0, height - 1) or j in (0, width - 1)
        probability = 1 / (1 + math.exp(-z))
        values.append(-ring_weight * math.log(1 - probability) if on_ring else -math.log(probability))
    return mean(values)


def close(value: Tensor, expected: float) -> None:
    torch.testing.assert_close(value, torch.tensor(expected, dtype=value.dtype))
