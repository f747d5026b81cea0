"""Each view's pixels, from cases small enough to write out."""

import numpy as np
import pytest
import torch
from PIL.ImageColor import getrgb

from report.overlays import denormalise, enlarge, heat_overlay, mask_view, part_overlay, resize
from report.style import HIDDEN, PARTS, part_colour

IMAGE = np.random.default_rng(0).integers(30, 200, (8, 8, 3), dtype=np.uint8)
QUARTER = torch.tensor([[True, False], [False, False]])


def test_denormalise_undoes_the_normalisation() -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)
    image = (torch.tensor(IMAGE).permute(2, 0, 1) / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[
        :, None, None
    ]
    assert np.array_equal(denormalise(image, mean, std), IMAGE)
    assert np.array_equal(denormalise(image.numpy(), mean, std), IMAGE)


@pytest.mark.parametrize(("value", "pixel"), [(9.0, 255), (-9.0, 0), (float("nan"), 0)])
def test_denormalise_clips(value: float, pixel: int) -> None:
    assert (denormalise(torch.full((3, 2, 2), value), (0.5,) * 3, (1.0,) * 3) == pixel).all()


def test_enlarge_makes_blocks_also_where_sizes_do_not_divide() -> None:
    assert enlarge(np.array([[1, 2]]), (2, 4)).tolist() == [[1, 1, 2, 2]] * 2
    assert enlarge(np.array([[1, 2]]), (1, 5)).tolist() == [[1, 1, 1, 2, 2]]


def test_hidden_patches_are_grey_and_the_others_untouched() -> None:
    for view in (mask_view(IMAGE, QUARTER), mask_view(IMAGE, enlarge(QUARTER, (8, 8)))):
        assert np.array_equal(view[:4, :4], IMAGE[:4, :4])
        assert (view[4:] == getrgb(HIDDEN)).all() and (view[:, 4:] == getrgb(HIDDEN)).all()
    assert mask_view(IMAGE, QUARTER.float()).dtype == np.uint8


def test_part_overlay() -> None:
    maps = torch.zeros(3, 2, 2, dtype=torch.bfloat16)
    maps[0, 0, 0] = maps[1, 0, 1] = maps[2, 1] = 1.0
    view = part_overlay(IMAGE, maps, opacity=1.0, background=1.0)
    assert (view[:3, :3] == getrgb(PARTS[0])).all() and (view[:3, 4:] == getrgb(PARTS[1])).all()
    assert (view[3] == 255).all() and (view[:4, 3] == 255).all()  # edges
    assert np.array_equal(view[4:], IMAGE[4:])
    dark = part_overlay(IMAGE, maps, mask=QUARTER, background=0.0)
    assert (dark[:3, 4:] == 0).all() and (dark[4:] == 0).all()
    assert np.array_equal(IMAGE, np.random.default_rng(0).integers(30, 200, (8, 8, 3), dtype=np.uint8))


def test_heat_overlay() -> None:
    view = heat_overlay(IMAGE, torch.tensor([[0.0, 5.0], [0.0, 5.0]]), opacity=1.0)
    assert view[:, 0].mean() < 20 and view[:, -1].mean() > 150
    flat = heat_overlay(IMAGE, np.full((2, 2), 3.0), opacity=1.0)
    assert len(np.unique(flat.reshape(-1, 3), axis=0)) == 1


def test_resize_and_colours() -> None:
    assert resize(IMAGE, (16, 12)).shape == (16, 12, 3)
    assert resize(IMAGE, (8, 8)) is IMAGE
    assert len(set(PARTS)) == 16 and part_colour(16) == PARTS[0]
