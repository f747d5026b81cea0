"""A classifier, images and maps for the perturbation metrics, and their curves one image and one step at a time."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from datasets.types import Batch
from metrics.maps.per_image import MAP_METRICS
from metrics.maps.perturbation_curves import CurveMetric
from metrics.maps.removal import blur
from metrics.types import Explanation
from tests.metrics.cases import many_classes

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
INFO = many_classes(5)
Predict = Callable[[Tensor], Tensor]


def classifier(seed: int = 0) -> Predict:
    """A small network on images of 16 x 16 pixels, sure enough of itself to change its mind."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Flatten(), nn.Linear(768, 32), nn.GELU(), nn.Linear(32, 5)).requires_grad_(False)
    return lambda images: 8 * net(images)


def random_case(n: int = 6, side: int = 16, maps_side: int = 4, seed: int = 0) -> tuple[Batch, Tensor]:
    """Images and maps; the first map has ties."""
    g = torch.Generator().manual_seed(seed)
    image = torch.randn(n, 3, side, side, generator=g)
    maps = torch.randn(n, maps_side, maps_side, generator=g)
    maps[0] = maps[0].clamp(min=0)
    return Batch(image, torch.arange(n) % 5, tuple(map(str, range(n)))), maps


def metric(name: str, **options: Any) -> CurveMetric:
    built = MAP_METRICS[name](INFO, **{"mean": MEAN, "std": STD} | options)
    assert isinstance(built, CurveMetric)
    return built


def feed(measured: CurveMetric, batch: Batch, maps: Tensor, predict: Predict, size: int = 6) -> CurveMetric:
    for rows in torch.arange(len(batch)).split(size):
        part = Batch(batch.image[rows], batch.label[rows], tuple(batch.paths[i] for i in rows))
        measured.update(part, Explanation(maps[rows], predict(part.image), predict))
    return measured


def slow_cover(image: Tensor, fill: str) -> Tensor:
    if fill == "blur":
        return blur(image[None])[0]
    raw = {"grey": (0.5,) * 3, "black": (0.0,) * 3, "mean": MEAN}[fill]
    colour = [(raw[c] - MEAN[c]) / STD[c] for c in range(3)]
    return torch.tensor(colour)[:, None, None].expand_as(image)


def slow_step(image: Tensor, heat: Tensor, cover: Tensor, step: int, steps: int, patch: int) -> Tensor:
    """The image with the first step / steps of its cells, in falling order of heat, taken from `cover`."""
    cells = heat.flatten().tolist()
    order = sorted(range(len(cells)), key=lambda i: (-cells[i], i))
    wide, result = heat.shape[1], image.clone()
    for cell in order[: len(cells) * step // steps]:
        y, x = cell // wide * patch, cell % wide * patch
        result[:, y : y + patch, x : x + patch] = cover[:, y : y + patch, x : x + patch]
    return result


def slow_curve(predict: Predict, score: Callable[[Tensor], float], start: Tensor, heat: Tensor, cover: Tensor,
               patch: int, steps: int = 10) -> list[float]:  # fmt: skip
    pictures = (slow_step(start, heat, cover, step, steps, patch) for step in range(steps + 1))
    return [score(predict(picture[None])[0]) for picture in pictures]


def mean_of(rows: list[list[float]]) -> list[float]:
    return [sum(column) / len(column) for column in zip(*rows, strict=True)]


def trapezoid(points: list[float], width: float) -> float:
    return sum((a + b) / 2 * width for a, b in zip(points, points[1:], strict=False))
