"""Each part term against its formula written out in Python loops, known numbers, gradients and edge cases."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from losses import parts

GRIDS = [(3, 3), (4, 6), (5, 3)]
MAP_TERMS = {
    "presence": parts.presence,
    "soft_constraint": lambda maps: parts.presence(maps, "soft_constraint"),
    "tanh": lambda maps: parts.presence(maps, "tanh"),
    "soft_tanh": lambda maps: parts.presence(maps, "soft_tanh"),
    "enforced_presence": parts.enforced_presence,
    "log": lambda maps: parts.enforced_presence(maps, "log"),
    "linear": lambda maps: parts.enforced_presence(maps, "linear"),
    "mse": lambda maps: parts.enforced_presence(maps, "mse"),
    "total_variation": parts.total_variation,
    "pixel_entropy": parts.pixel_entropy,
    "concentration": parts.concentration,
    "equivariance": lambda maps: parts.equivariance(maps, maps.roll(1, 3)),
    "border": lambda maps: parts.border(maps, 6.0),
}


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


def slow_presence(maps: Tensor, kind: str) -> float:
    batch, foreground = len(maps), range(maps.shape[1] - 1)
    if kind in ("original", "soft_constraint"):
        p = [max(peak(maps[b, k]) for b in range(batch)) for k in foreground]
        return 1 - mean(p) if kind == "original" else mean((1 - x) * (0.9 * x + 0.1) for x in p)
    t = [math.tanh(sum(peak(maps[b, k]) for b in range(batch))) for k in foreground]
    return mean(-math.log(x) for x in t) if kind == "tanh" else mean(1 - x for x in t)


def slow_enforced(maps: Tensor, kind: str) -> float:
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


def slow_total_variation(maps: Tensor) -> float:
    batch, channels, height, width = maps.shape
    total = 0.0
    for b, k, i, j in itertools.product(*map(range, maps.shape)):
        if i + 1 < height:
            total += abs(maps[b, k, i + 1, j] - maps[b, k, i, j]).item()
        if j + 1 < width:
            total += abs(maps[b, k, i, j + 1] - maps[b, k, i, j]).item()
    return total / (batch * height * width)


def slow_entropy(maps: Tensor) -> float:
    batch, _, height, width = maps.shape
    return -sum(a * math.log(a) for a in maps.flatten().tolist()) / (batch * height * width)


def slow_concentration(maps: Tensor) -> float:
    batch, channels, height, width = maps.shape
    values = []
    for b, k in itertools.product(range(batch), range(channels - 1)):
        cells = [(i, j, maps[b, k, i, j].item()) for i in range(height) for j in range(width)]
        mass = sum(a for _, _, a in cells)
        ci, cj = sum(i * a for i, _, a in cells) / mass, sum(j * a for _, j, a in cells) / mass
        values += [a * (((ci - i) / height) ** 2 + ((cj - j) / width) ** 2) for i, j, a in cells]
    return mean(values)


def slow_cosine(first: list[float], second: list[float]) -> float:
    norms = [max(math.sqrt(sum(x * x for x in v)), 1e-8) for v in (first, second)]
    return sum(x * y for x, y in zip(first, second, strict=True)) / (norms[0] * norms[1])


def slow_equivariance(maps: Tensor, back: Tensor, valid: Tensor) -> float:
    return 1 - mean(
        slow_cosine(maps[b, k][valid[b]].tolist(), back[b, k][valid[b]].tolist())
        for b in range(len(maps))
        for k in range(maps.shape[1] - 1)
    )


def slow_orthogonality(features: Tensor, kind: str) -> float:
    values = []
    for image in features.tolist():  # D rows of K+1 numbers
        vectors = image if kind == "channels" else [list(column) for column in zip(*image, strict=True)]
        for (i, v), (j, w) in itertools.product(enumerate(vectors), repeat=2):
            values.append((slow_cosine(v, w) - (i == j)) ** 2)
    return mean(values)


def slow_border(logits: Tensor, ring_weight: float) -> float:
    batch, _, height, width = logits.shape
    values = []
    for b, i, j in itertools.product(range(batch), range(height), range(width)):
        z = math.log(sum(math.exp(x) for x in logits[b, :-1, i, j].tolist())) - logits[b, -1, i, j].item()
        on_ring = i in (0, height - 1) or j in (0, width - 1)
        share = 1 / (1 + math.exp(-z))
        values.append(-ring_weight * math.log(1 - share) if on_ring else -math.log(share))
    return mean(values)


def close(value: Tensor, expected: float) -> None:
    torch.testing.assert_close(value, torch.tensor(expected, dtype=value.dtype))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kind", ["original", "soft_constraint", "tanh", "soft_tanh"])
def test_presence(kind, grid):
    maps = random_maps(grid=grid)
    close(parts.presence(maps, kind), slow_presence(maps, kind))


@pytest.mark.parametrize("kind", ["enforced_presence", "log", "linear", "mse"])
def test_enforced_presence(kind):
    maps = random_maps(grid=(5, 8))
    close(parts.enforced_presence(maps, kind), slow_enforced(maps, kind))


@pytest.mark.parametrize("grid", GRIDS)
def test_terms_of_maps_alone(grid):
    maps = random_maps(grid=grid)
    close(parts.total_variation(maps), slow_total_variation(maps))
    close(parts.pixel_entropy(maps), slow_entropy(maps))
    close(parts.concentration(maps), slow_concentration(maps))
    close(parts.border(maps.log(), 3.0), slow_border(maps.log(), 3.0))


@pytest.mark.parametrize("kind", ["parts", "channels"])
def test_orthogonality(kind):
    features = torch.randn(2, 7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    close(parts.orthogonality(features, kind), slow_orthogonality(features, kind))


def test_orthogonality_of_orthogonal_parts():
    """The published trainer's form is far from 0 where the parts could not be better."""
    features = torch.linalg.qr(torch.randn(768, 9, generator=torch.Generator().manual_seed(0)))[0][None]
    close(parts.orthogonality(features, "parts"), 0.0)
    channels = parts.orthogonality(features, "channels").item()
    assert channels == pytest.approx(0.1099, abs=4e-4)
    assert channels >= 1 / 9 - 1 / 768


def test_equivariance():
    maps, back = random_maps(seed=1), random_maps(seed=2)
    everywhere = torch.ones(2, 4, 6, dtype=torch.bool)
    close(parts.equivariance(maps, back), slow_equivariance(maps, back, everywhere))
    close(parts.equivariance(maps, back, everywhere), slow_equivariance(maps, back, everywhere))
    valid = torch.rand(2, 4, 6, generator=torch.Generator().manual_seed(3)) > 0.5
    close(parts.equivariance(maps, back, valid), slow_equivariance(maps, back, valid))
    garbage = torch.where(valid[:, None], back, 100.0)
    close(parts.equivariance(maps, garbage, valid), slow_equivariance(maps, back, valid))


def test_equivariance_leaves_out_images_without_view():
    maps, back = random_maps(seed=1), random_maps(seed=2)
    valid = torch.ones(2, 4, 6)
    valid[1] = 0
    close(parts.equivariance(maps, back, valid), parts.equivariance(maps[:1], back[:1]).item())
    close(parts.equivariance(maps, back, torch.zeros(2, 4, 6)), 0.0)


@given(st.integers(3, 6), st.integers(3, 6), st.integers(1, 4), st.integers(0, 99))
def test_bounds_for_any_shape(height, width, parts_, seed):
    maps = random_maps(2, parts_, (height, width), seed)
    assert 0 <= parts.presence(maps) <= 1
    assert 0 <= parts.enforced_presence(maps) <= 100
    assert 0 <= parts.pixel_entropy(maps) <= math.log(parts_ + 1) + 1e-12
    assert 0 <= parts.concentration(maps) <= 2
    assert parts.equivariance(maps, maps).abs() < 1e-12
    assert parts.total_variation(maps) <= 4 * 2


def test_terms_reach_their_best_value():
    maps = torch.zeros(2, 3, 9, 9)
    maps[:, 2] = 1
    maps[0, :, :3, :3] = torch.tensor([1.0, 0, 0])[:, None, None]
    maps[1, :, 3:6, 3:6] = torch.tensor([0, 1.0, 0])[:, None, None]
    for term in (parts.presence, parts.enforced_presence, parts.pixel_entropy):
        close(term(maps), 0.0)
    close(parts.total_variation(torch.full((1, 3, 4, 4), 1 / 3)), 0.0)


def test_presence_looks_at_the_whole_batch():
    """One image that shows the part is enough."""
    maps = random_maps(3)
    peaks = torch.tensor([[peak(maps[b, k]) for k in range(3)] for b in range(3)], dtype=torch.float64)
    close(parts.presence(maps), 1 - peaks.max(dim=0).values.mean().item())


def test_corner_weight():
    like = torch.zeros(())
    expected = torch.tensor([[1, 0.5, 1], [0.5, 0, 0.5], [1, 0.5, 1]])
    torch.testing.assert_close(parts.corner_weight((3, 3), like), expected)
    torch.testing.assert_close(parts.corner_weight((1, 3), like), torch.tensor([[1.0, 0, 1]]))
    torch.testing.assert_close(parts.corner_weight((1, 1), like), torch.ones(1, 1))
    assert parts.corner_weight((35, 20), like).max() == 1


@pytest.mark.parametrize("name", [name for name in MAP_TERMS if name not in ("soft_constraint", "concentration")])
def test_gradients(name):
    """The two left out hold a stop-gradient, which finite differences cannot see: `test_gradients_with_a_stop`."""
    maps = random_maps(2, 2, (3, 4)).requires_grad_()
    assert torch.autograd.gradcheck(MAP_TERMS[name], [maps])


@pytest.mark.parametrize("kind", ["parts", "channels"])
def test_gradients_of_orthogonality(kind):
    features = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: parts.orthogonality(x, kind), [features])


def test_gradients_with_a_stop():
    maps = random_maps(1, 1, (3, 3)).requires_grad_()
    (gradient,) = torch.autograd.grad(parts.presence(maps, "soft_constraint"), maps)
    p = peak(maps.detach()[0, 0])
    torch.testing.assert_close(gradient[0, 0], torch.full((3, 3), -(0.9 * p + 0.1) / 9, dtype=torch.float64))

    def stopped(x: Tensor) -> Tensor:  # the mass in the centroid is a constant of the point we differentiate at
        a, mass, index = x[0, 0], maps.detach()[0, 0].sum(), torch.arange(3.0, dtype=torch.float64)
        rows, columns = index[:, None].expand(3, 3), index[None].expand(3, 3)
        spread = sum((((a * u).sum() / mass - u) / 3) ** 2 for u in (rows, columns))
        return (a * spread).mean()

    expected = torch.autograd.functional.jacobian(stopped, maps.detach())
    (gradient,) = torch.autograd.grad(parts.concentration(maps), maps)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("name", MAP_TERMS)
@pytest.mark.parametrize("channel", [0, -1], ids=["one part", "background"])
def test_saturated_maps_stay_finite(name, channel):
    """All the mass in one channel, exact zeros elsewhere: the end that softmax in fp32 does reach."""
    maps = torch.zeros(2, 4, 5, 5)
    maps[:, channel] = 1
    maps.requires_grad_()
    value = MAP_TERMS[name](maps)
    value.backward()
    assert value.isfinite()
    assert maps.grad is not None and maps.grad.isfinite().all()


def test_absent_background_costs_100():
    maps = torch.zeros(2, 3, 4, 4)
    maps[:, 0] = 1
    close(parts.enforced_presence(maps), 100.0)
    close(parts.enforced_presence(maps, "log"), 100.0)


def test_empty_part_does_not_disturb_the_others():
    maps = random_maps(1, 2)
    alone = parts.concentration(maps[:, [0, 2]])
    close(parts.concentration(torch.stack((maps[:, 0], torch.zeros_like(maps[:, 0]), maps[:, 2]), 1)), alone.item() / 2)


@pytest.mark.parametrize("name", MAP_TERMS)
def test_shapes_that_mean_nothing(name):
    for shape in ((2, 3, 2, 5), (2, 3, 5, 2)):
        with pytest.raises(ValueError, match="3x3"):
            MAP_TERMS[name](torch.rand(shape))
    with pytest.raises(ValueError, match="K\\+1"):
        MAP_TERMS[name](torch.rand(2, 1, 5, 5))


def test_arguments_that_mean_nothing():
    maps = random_maps()
    with pytest.raises(ValueError, match="differ in shape"):
        parts.equivariance(maps, maps[:1])
    with pytest.raises(ValueError, match="part features"):
        parts.orthogonality(maps)
    for term in (parts.presence, parts.enforced_presence):
        with pytest.raises(ValueError, match="unknown"):
            term(maps, "other")
    with pytest.raises(ValueError, match="unknown"):
        parts.orthogonality(maps[0], "other")


def test_border_prefers_the_bird_inside():
    logits = torch.full((1, 3, 5, 5), -4.0)
    logits[:, 2] = 4.0
    logits[:, 0, 1:-1, 1:-1], logits[:, 2, 1:-1, 1:-1] = 4.0, -4.0
    assert parts.border(logits, 6.0) < 1e-2
    assert parts.border(-logits, 6.0) > 10
