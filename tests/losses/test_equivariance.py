"""The random view: equal to torchvision's affine, inverted to the right place, with a correct validity mask."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import affine

from common.errors import UserError
from losses.config import EquivarianceConfig
from losses.equivariance import AffineView, draw_view, num_views, unwarp_maps, warp_images

SIZES = [(32, 32), (24, 40)]
DEFAULT = EquivarianceConfig()
PUBLISHED = EquivarianceConfig(published=True)
SHEARED = EquivarianceConfig(max_shear=(20.0, 30.0), max_shift=0.0, max_shift_y=0.2)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def view_of(angle=0.0, shift_x=0.0, shift_y=0.0, scale=1.0, size_hw=(32, 32), batch=1, **more) -> AffineView:
    columns = [torch.full((batch,), float(value)) for value in (angle, shift_x, shift_y, scale)]
    return AffineView(*columns, size_hw=size_hw, **more)


def smooth(size_hw: tuple[int, int], batch: int = 1, size: float = 1.0) -> Tensor:
    """Slow waves over the image [B, 2, h, w], each image its own."""
    height, width = size_hw
    y = (torch.arange(height) + 0.5) / height
    x = (torch.arange(width) + 0.5) / width
    waves = [torch.sin(3 * size * (x[None] + y[:, None]) + b) + torch.cos(2 * y)[:, None] for b in range(batch)]
    return torch.stack([torch.stack((wave, 1 - wave)) for wave in waves])


def torchvision_affine(image: Tensor, view: AffineView, index: int) -> Tensor:
    height, width = image.shape[-2:]
    shift = [view.shift_x[index].item() * width, view.shift_y[index].item() * height]
    angle, scale = view.angle[index].item(), view.scale[index].item()
    shear = [values[index].item() for values in view.shear] if view.shear else [0.0, 0.0]
    return affine(image, angle, shift, scale, shear, interpolation=InterpolationMode.BILINEAR)


@pytest.mark.parametrize("config", [DEFAULT, SHEARED])
@pytest.mark.parametrize("size_hw", SIZES)
def test_same_as_torchvision(size_hw, config):
    images, view = torch.rand(4, 3, *size_hw, generator=seeded()), draw_view(4, size_hw, config, seeded(1))
    warped = warp_images(images, view)
    for index in range(4):
        expected = torchvision_affine(images[index : index + 1], view, index)[0]
        torch.testing.assert_close(warped[index], expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("padding", ["zeros", "reflection"])
@pytest.mark.parametrize("size_hw", SIZES)
def test_identity(size_hw, padding):
    images = torch.rand(2, 3, *size_hw, generator=seeded())
    view = view_of(size_hw=size_hw, batch=2, padding=padding)
    torch.testing.assert_close(warp_images(images, view), images, atol=1e-5, rtol=0)
    maps = torch.rand(2, 4, 5, 7, generator=seeded())
    back, valid = unwarp_maps(maps, view)
    torch.testing.assert_close(back, maps, atol=1e-5, rtol=0)
    assert valid is not None
    assert valid.dtype == torch.bool
    assert valid.shape == (2, 5, 7)
    assert valid.all()


@pytest.mark.parametrize("turns", [-1, 1, 2])
@pytest.mark.parametrize("published", [False, True])
def test_quarter_turns_are_exact(turns, published):
    images = torch.rand(1, 3, 12, 12, generator=seeded())
    view = view_of(angle=90 * turns, size_hw=(12, 12), published=published)
    turned = images.rot90(-turns, dims=(2, 3))  # a positive angle is clockwise
    torch.testing.assert_close(warp_images(images, view), turned, atol=1e-5, rtol=0)
    back, valid = unwarp_maps(turned, view)
    torch.testing.assert_close(back, images, atol=1e-5, rtol=0)
    assert valid is None if published else valid.all()


def test_shift_by_whole_patches():
    """Right and down are positive; what comes in is zero; what went out is not valid."""
    images = torch.rand(1, 3, 8, 16, generator=seeded())
    view = view_of(shift_x=4 / 16, shift_y=1 / 8, size_hw=(8, 16))
    warped = warp_images(images, view)
    torch.testing.assert_close(warped[:, :, 1:, 4:], images[:, :, :-1, :-4], atol=1e-5, rtol=0)
    assert warped[:, :, :1].abs().max() < 1e-5
    assert warped[:, :, :, :4].abs().max() < 1e-5
    back, valid = unwarp_maps(warped, view)
    torch.testing.assert_close(back[:, :, :-1, :-4], images[:, :, :-1, :-4], atol=2e-5, rtol=0)
    expected = torch.zeros(1, 8, 16, dtype=torch.bool)
    expected[:, :-1, :-4] = True
    assert torch.equal(valid, expected)


@pytest.mark.parametrize("padding", ["zeros", "reflection"])
@pytest.mark.parametrize("size_hw", SIZES)
@pytest.mark.parametrize("config", [DEFAULT, SHEARED])
def test_warping_there_and_back(config, size_hw, padding):
    config = replace(config, padding=padding)
    images, view = smooth(size_hw, batch=6), draw_view(6, size_hw, config, seeded(2))
    back, valid = unwarp_maps(warp_images(images, view), view)
    error = (back - images).abs().amax(dim=1)
    assert 0.3 < valid.float().mean() < 1
    # At the very edge a mirrored neighbour takes part in the interpolation.
    assert error[valid].max() < (0.03 if padding == "zeros" else 0.06)
    assert error[~valid].max() > 0.3  # outside the mask the error is large


def test_maps_are_brought_back_on_the_patch_grid():
    """Warp the image, pool it to patches, bring the patches back: the pooled original."""
    images = smooth((48, 80), batch=4)
    view = draw_view(4, (48, 80), DEFAULT, seeded(3))
    pool = torch.nn.AvgPool2d(4)
    back, valid = unwarp_maps(pool(warp_images(images, view)), view)
    assert (back - pool(images)).abs().amax(dim=1)[valid].max() < 0.1


def test_patches_that_are_not_square():
    """A 1:1 image on a 6 x 12 patch grid still turns in pixels: a quarter turn moves the right half to the bottom."""
    images = torch.zeros(1, 1, 24, 24)
    images[..., 12:] = 1
    view = view_of(angle=90, size_hw=(24, 24))
    bottom = warp_images(images, view)
    assert bottom[..., 12:, :].min() > 0.99
    pool = torch.nn.AvgPool2d((4, 2))
    back, valid = unwarp_maps(pool(bottom), view)
    assert valid.any()
    assert ((back - pool(images)).abs()[:, 0] * valid)[..., [0, 1, 2, 3, 8, 9, 10, 11]].max() < 1e-3


@given(
    st.floats(-180, 180),
    st.floats(-0.2, 0.2),
    st.floats(-0.2, 0.2),
    st.floats(0.7, 1.5),
    st.sampled_from([(16, 16), (12, 20)]),
)
def test_valid_positions_are_right_for_any_view(angle, shift_x, shift_y, scale, size_hw):
    """Coordinates warped there and back are themselves wherever the mask says so: bilinear is exact on planes."""
    plane = torch.stack(torch.meshgrid(torch.arange(size_hw[0]), torch.arange(size_hw[1]), indexing="ij")).float()[None]
    view = view_of(angle, shift_x, shift_y, scale, size_hw)
    back, valid = unwarp_maps(warp_images(plane, view), view)
    # The mask forgives a weight of 1e-3 outside, times coordinates up to 20.
    assert ((back - plane).abs().amax(dim=1) * valid).max() < 0.05


@pytest.mark.parametrize("padding", ["zeros", "reflection"])
def test_batch_is_its_images_one_by_one(padding):
    images = torch.rand(3, 3, 24, 40, generator=seeded())
    view = draw_view(3, (24, 40), replace(DEFAULT, padding=padding), seeded(1))
    warped = warp_images(images, view)
    back, valid = unwarp_maps(images, view)
    for i in range(3):
        columns = [c[i : i + 1] for c in (view.angle, view.shift_x, view.shift_y, view.scale)]
        alone = AffineView(*columns, size_hw=(24, 40), padding=padding)
        assert torch.equal(warp_images(images[i : i + 1], alone)[0], warped[i])
        back_alone, valid_alone = unwarp_maps(images[i : i + 1], alone)
        assert torch.equal(back_alone[0], back[i])
        assert torch.equal(valid_alone[0], valid[i])


def test_reflection_leaves_no_gap():
    images = 1 + torch.rand(8, 3, 16, 16, generator=seeded())
    view = draw_view(8, (16, 16), replace(DEFAULT, padding="reflection"), seeded(1))
    assert warp_images(images, view).min() >= 0.99
    assert warp_images(images, replace(view, padding="zeros")).min() == 0


def test_draw_is_within_its_limits_and_follows_the_generator():
    view, sheared = (draw_view(500, (32, 32), config, seeded()) for config in (DEFAULT, SHEARED))
    assert view.shear is None and torch.equal(view.angle, sheared.angle) and not sheared.shift_x.any()
    limits = [
        (view.angle, -90, 90), (view.shift_x, -0.11, 0.11), (view.shift_y, -0.11, 0.11), (view.scale, 0.8, 1.4),
        (sheared.shear[0], -20, 20), (sheared.shear[1], -30, 30), (sheared.shift_y, -0.2, 0.2),
    ]  # fmt: skip
    for values, low, high in limits:
        assert values.shape == (500,)
        assert low <= values.min() < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < values.max() <= high
    again = draw_view(500, (32, 32), DEFAULT, seeded())
    assert torch.equal(view.angle, again.angle)
    assert not torch.equal(view.angle, draw_view(500, (32, 32), DEFAULT, seeded(1)).angle)
    torch.manual_seed(5)
    first = draw_view(2, (32, 32), DEFAULT)
    torch.manual_seed(5)
    assert torch.equal(first.angle, draw_view(2, (32, 32), DEFAULT, device="cpu").angle)


def test_published_draw():
    """Angle, x shift, y shift, scale, in this order, one each; shifts are whole pixels."""
    view = draw_view(3, (40, 60), PUBLISHED, seeded(7))
    generator = seeded(7)

    def uniform(limit: float) -> float:
        return torch.empty(1).uniform_(-limit, limit, generator=generator).item()

    assert view.angle.tolist() == [uniform(90)] * 3
    assert view.shift_x.tolist() == [round(uniform(0.11 * 40)) / 60] * 3  # width and height exchanged
    assert view.shift_y.tolist() == [round(uniform(0.11 * 60)) / 40] * 3
    assert view.scale.tolist() == [torch.empty(1).uniform_(0.8, 1.4, generator=generator).item()] * 3


@pytest.mark.parametrize(("seed", "height"), [(0, 56), (1, 56), (2, 35)])
def test_published_form_is_the_torchvision_composition(seed, height):
    images, maps = (torch.rand(2, 4, height // p, 56 // p, generator=seeded(p)) for p in (1, 7))
    view = draw_view(2, (height, 56), PUBLISHED, seeded(seed))
    angle, scale = view.angle[0].item(), view.scale[0].item()
    pixels = [round(view.shift_x[0].item() * 56), round(view.shift_y[0].item() * height)]
    warped = affine(images, angle, pixels, scale, [0.0, 0.0], interpolation=InterpolationMode.BILINEAR)
    assert torch.equal(warp_images(images, view), warped)
    shifted = affine(maps, 0.0, [-p / 7 for p in pixels], 1.0, [0.0, 0.0])
    expected = affine(shifted, -angle, [0, 0], 1 / scale, [0.0, 0.0])
    back, valid = unwarp_maps(maps, view)
    assert valid is None
    torch.testing.assert_close(back, expected)


def test_default_returns_nearer_than_published():
    """One bilinear inverse and a mask leave a smaller error than two nearest resamplings."""
    images = smooth((32, 32), size=2.0)
    view = draw_view(1, (32, 32), PUBLISHED, seeded(1))
    published, _ = unwarp_maps(warp_images(images, view), view)
    ours, valid = unwarp_maps(warp_images(images, replace(view, published=False)), replace(view, published=False))
    assert (ours - images).abs().amax(1)[valid].mean() < (published - images).abs().amax(1)[valid].mean() / 3


@pytest.mark.parametrize("view", [draw_view(2, (24, 24), c, seeded(1)) for c in (DEFAULT, PUBLISHED)])
def test_maps_carry_gradient(view):
    maps = torch.rand(2, 3, 6, 6, generator=seeded()).requires_grad_()
    back, _ = unwarp_maps(maps, view)
    back.square().sum().backward()
    assert maps.grad is not None
    assert maps.grad.abs().sum() > 0


def test_deterministic_path_is_the_same():
    maps = torch.rand(3, 4, 6, 9, generator=seeded(), dtype=torch.float64).requires_grad_()
    view = draw_view(3, (24, 36), DEFAULT, seeded(4))
    back, valid = unwarp_maps(maps, view)
    (gradient,) = torch.autograd.grad(back.square().sum(), maps)
    torch.use_deterministic_algorithms(True)
    try:
        other, other_valid = unwarp_maps(maps, view)
        (other_gradient,) = torch.autograd.grad(other.square().sum(), maps)
    finally:
        torch.use_deterministic_algorithms(False)
    assert back.grad_fn is not None
    assert type(other.grad_fn) is not type(back.grad_fn)
    torch.testing.assert_close(other, back)
    torch.testing.assert_close(other_gradient, gradient)
    assert torch.equal(valid, other_valid)


def test_dtype_and_autocast():
    """Coordinates stay in fp32: a half-precision image is sampled at the same places."""
    images = smooth((64, 64))
    view = draw_view(1, (64, 64), DEFAULT, seeded())
    half = warp_images(images.bfloat16(), view)
    assert half.dtype == torch.bfloat16
    assert (half.float() - warp_images(images, view)).abs().max() < 0.02
    for each in (view, draw_view(1, (64, 64), PUBLISHED, seeded())):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside, inside_back = warp_images(images, each), unwarp_maps(images, each)[0]
        assert torch.equal(inside, warp_images(images, each))
        assert torch.equal(inside_back, unwarp_maps(images, each)[0])


def test_number_of_views():
    assert num_views(8, DEFAULT) == 8
    assert num_views(8, replace(DEFAULT, images=3)) == 3
    assert num_views(2, replace(DEFAULT, images=3)) == 2


def test_wrong_arguments():
    with pytest.raises(ValueError, match="view of 2 images"):
        warp_images(torch.rand(3, 3, 8, 8), view_of(batch=2))
    with pytest.raises(ValueError, match="view of 2 images"):
        unwarp_maps(torch.rand(3, 3, 8, 8), view_of(batch=2))
    with pytest.raises(UserError, match=r"loss\.equivariance\.padding"):
        draw_view(2, (8, 8), replace(PUBLISHED, padding="reflection"))
    with pytest.raises(UserError, match=r"loss\.equivariance\.max_shear"):
        draw_view(2, (8, 8), replace(PUBLISHED, max_shear=(5.0, 0.0)))


def test_angle_is_clockwise():
    """A point right of the centre moves down (y grows downwards)."""
    image = torch.zeros(1, 1, 33, 33)
    image[..., 16, 26] = 1
    warped = warp_images(image, view_of(angle=45, size_hw=(33, 33)))[0, 0]
    row, column = divmod(int(warped.argmax()), 33)
    offset = 10 * math.sqrt(0.5)
    assert row == pytest.approx(16 + offset, abs=1)
    assert column == pytest.approx(16 + offset, abs=1)
