"""Each part term against its formula written out in Python loops, known numbers, gradients and edge cases."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from losses import parts
from tests.losses import textbook as slow
from tests.losses.textbook import close, peak, random_maps

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


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kind", ["original", "soft_constraint", "tanh", "soft_tanh"])
def test_presence(kind, grid):
    maps = random_maps(grid=grid)
    close(parts.presence(maps, kind), slow.presence(maps, kind))
    close(parts.presence(maps, kind, 0.4), slow.presence(maps, kind, 0.4))


@pytest.mark.parametrize("kind", ["enforced_presence", "log", "linear", "mse"])
def test_enforced_presence(kind):
    maps = random_maps(grid=(5, 8))
    close(parts.enforced_presence(maps, kind), slow.enforced(maps, kind))


@pytest.mark.parametrize("grid", GRIDS)
def test_terms_of_maps_alone(grid):
    maps = random_maps(grid=grid)
    close(parts.total_variation(maps), slow.total_variation(maps))
    close(parts.pixel_entropy(maps), slow.entropy(maps))
    close(parts.concentration(maps), slow.concentration(maps))
    close(parts.border(maps.log(), 3.0), slow.border(maps.log(), 3.0))


@pytest.mark.parametrize("kind", ["parts", "channels"])
def test_orthogonality(kind):
    features = torch.randn(2, 7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    close(parts.orthogonality(features, kind), slow.orthogonality(features, kind))


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
    close(parts.equivariance(maps, back), slow.equivariance(maps, back, everywhere))
    close(parts.equivariance(maps, back, everywhere), slow.equivariance(maps, back, everywhere))
    valid = torch.rand(2, 4, 6, generator=torch.Generator().manual_seed(3)) > 0.5
    close(parts.equivariance(maps, back, valid), slow.equivariance(maps, back, valid))
    garbage = torch.where(valid[:, None], back, 100.0)
    close(parts.equivariance(maps, garbage, valid), slow.equivariance(maps, back, valid))


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


def test_presence_is_over_the_whole_batch():
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


@pytest.mark.parametrize("name", [name for name in MAP_TERMS if name != "soft_constraint"])
def test_gradients(name):
    """soft_constraint holds a stop-gradient, which finite differences cannot see: `test_gradient_with_a_stop`.

    So does concentration, but a centroid is where its own spread is flat: stopped or not, the gradient is the same.
    """
    maps = random_maps(2, 2, (3, 4)).requires_grad_()
    assert torch.autograd.gradcheck(MAP_TERMS[name], [maps])


@pytest.mark.parametrize("kind", ["parts", "channels"])
def test_gradients_of_orthogonality(kind):
    features = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: parts.orthogonality(x, kind), [features])


def test_gradient_with_a_stop():
    maps = random_maps(1, 1, (3, 3)).requires_grad_()
    (gradient,) = torch.autograd.grad(parts.presence(maps, "soft_constraint"), maps)
    p = peak(maps.detach()[0, 0])
    torch.testing.assert_close(gradient[0, 0], torch.full((3, 3), -(0.9 * p + 0.1) / 9, dtype=torch.float64))


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
def test_wrong_shapes(name):
    for shape in ((2, 3, 2, 5), (2, 3, 5, 2)):
        with pytest.raises(UserError, match=r"data\.image_size: .*at least 3 x 3 patches"):
            MAP_TERMS[name](torch.rand(shape))
    with pytest.raises(ValueError, match="K\\+1"):
        MAP_TERMS[name](torch.rand(2, 1, 5, 5))


def test_wrong_arguments():
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
