"""How an image is covered: published numbers of pixels, colours, ties, and options that cannot be."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from common.errors import UserError
from metrics.maps.removal import CoveredImages, Removal, rank_cells
from metrics.types import Explanation

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def test_published_pixel_counts_and_colour() -> None:
    removal = Removal((0.5,) * 3, (0.5,) * 3, "grey")
    image = torch.ones(1, 3, 224, 224)
    cover = removal.cover(image)
    assert torch.equal(cover, torch.zeros_like(image))  # mid-grey, the published code's multiplication by 0
    rank = rank_cells(torch.rand(1, 224, 224, generator=torch.Generator().manual_seed(0)))
    covered = CoveredImages(image, cover, removal.covered(rank))
    counts = (covered[:] == 0).sum((2, 3))
    assert counts[:, 0].tolist() == [5017, 10035, 15052, 20070, 25088, 30105, 35123, 40140, 45158]
    assert len(covered) == 9 and torch.equal(covered[7:99], covered[:][7:])


def test_black_is_raw_black() -> None:
    black = Removal(MEAN, STD, "black").cover(torch.ones(2, 3, 4, 4))
    raw = black * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    assert raw.abs().max() < 1e-6


def test_ties_go_by_position() -> None:
    maps = torch.tensor([[[1.0, 3.0], [3.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert rank_cells(maps).tolist() == [[[2, 0], [1, 3]], [[0, 1], [2, 3]]]


@pytest.mark.parametrize(
    ("options", "word"), [({"fill": "pink"}, "pink"), ({"steps": 1}, "steps"), ({"chunk": 0}, "chunk")]
)
def test_bad_options_are_named(options: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word):
        Removal(**{"mean": MEAN, "std": STD, "fill": "grey"} | options)


def test_as_many_images_at_once_as_were_asked_for() -> None:
    """Also where the model could choose."""
    sizes: list[int] = []

    def predict(images: Tensor) -> Tensor:
        sizes.append(len(images))
        return images.flatten(1)

    images = torch.arange(14.0).view(7, 2, 1, 1)
    plain = Explanation(torch.zeros(3, 1, 1), torch.zeros(3, 2), predict)
    choosing = replace(plain, predict_lazily=lambda some: predict(some[0 : len(some)]))
    for explanation, at_once in ((plain, None), (plain, 2), (choosing, 2), (choosing, None)):
        assert torch.equal(explanation.predict_all(images, at_once), images.flatten(1))
    assert sizes == [3, 3, 1] + 2 * [2, 2, 2, 1] + [7]
