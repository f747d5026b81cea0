"""`model.mask_resolution=pixel`, the margin of the foreground, and noise at the border of the mask."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from common.errors import UserError
from explain import explain
from metrics.masks import patch_overlap
from models import MODELS, build_model
from models.config import ModelConfig
from models.given_mask import select_given
from models.part_discovery import Intervention, PartNoise
from models.selection import Selection, drop_border, selection_of
from models.two_stage import TwoStageModel, with_mask
from tests.models.small import config, images, shaken

SIZE, GRID, PATCH, CLASSES, PARTS = (32, 48), (4, 6), 8, 5, 3
PIXELS = {"mask_resolution": "pixel"}


def model_of(seed: int = 0, **changes) -> TwoStageModel:
    model = build_model(config(**(PIXELS | changes)), CLASSES, SIZE)
    assert isinstance(model, TwoStageModel)
    shaken(model, seed, gain=1.0)
    return model.eval()


def slow_logits(model: TwoStageModel, x: Tensor) -> Tensor:
    """[B, H, W, K+1]: part logits at pixel centres by the textbook's bilinear rule, one pixel at a time."""
    logits_BKhw = model.select(x).selection.logits
    out = torch.empty(len(x), *SIZE, PARTS + 1)
    for i in range(SIZE[0]):
        for j in range(SIZE[1]):
            v, u = max((i + 0.5) / PATCH - 0.5, 0), max((j + 0.5) / PATCH - 0.5, 0)
            top, left = int(v), int(u)
            rows, columns = (top, min(top + 1, GRID[0] - 1)), (left, min(left + 1, GRID[1] - 1))
            a, b = v - top, u - left
            (nw, ne), (sw, se) = [[logits_BKhw[:, :, r, c] for c in columns] for r in rows]
            out[:, i, j] = (1 - a) * ((1 - b) * nw + b * ne) + a * ((1 - b) * sw + b * se)
    return out


@pytest.mark.parametrize("margin", [0.0, 0.7])
@torch.no_grad()
def test_a_pixel_is_visible_where_an_interpolated_part_logit_wins(margin: float) -> None:
    model, x = model_of(parts={"margin": margin}), images(3, SIZE)
    logits, selection = slow_logits(model, x), model.select(x).selection
    expected = logits[..., :-1].amax(-1) - logits[..., -1]
    certain = (expected - margin).abs() > 1e-3  # elsewhere rounding decides
    assert torch.equal(selection.pixels[certain], (expected >= margin)[certain])
    assert 0.1 < selection.pixels.float().mean() < 0.99
    holds = [
        [[bool(p[8 * i : 8 * i + 8, 8 * j : 8 * j + 8].any()) for j in range(6)] for i in range(4)]
        for p in selection.pixels
    ]
    assert torch.equal(selection.mask, torch.tensor(holds))


@pytest.mark.parametrize("removed", [(0,), (1, 2)])
@torch.no_grad()
def test_removing_a_part_hides_its_pixels_and_changes_no_other(removed: tuple[int, ...]) -> None:
    model, x = model_of(), images(3, SIZE)
    winner = slow_logits(model, x).argmax(-1)
    before = model.select(x).selection.pixels
    after = model.select(x, intervention=Intervention(remove_parts=removed)).selection
    assert torch.equal(after.pixels[~after.empty], (before & ~torch.isin(winner, torch.tensor(removed)))[~after.empty])
    assert (before & ~after.pixels).any()


@torch.no_grad()
def test_thresholds_hold_at_pixels() -> None:
    model, x = model_of(), images(3, SIZE)
    before = model.select(x).selection.pixels
    _, dots = model.stage_1.parts.logits(
        model.stage_1.backbone.forward_features(x)[:, model.stage_1.backbone.num_prefix_tokens :]
    )
    middle = dots[..., :-1].flatten(0, 1).quantile(0.7, dim=0)
    after = model.select(x, intervention=Intervention(thresholds=middle)).selection.pixels
    assert 0 < after.sum() < before.sum() and not (after & ~before).any()
    nothing = model.select(x, intervention=Intervention(thresholds=torch.full((PARTS,), 1e6))).selection
    assert nothing.empty.all()
    assert torch.equal(nothing.mask.flatten(1).sum(1), torch.ones(3, dtype=torch.int64)), "the best patch, whole"
    assert nothing.pixels.flatten(1).sum(1).tolist() == [PATCH**2] * 3


@pytest.mark.parametrize("value", [0.0, 1e4, torch.inf, torch.nan])
@pytest.mark.parametrize("path", ["dense", "gathered", "packed"])
@torch.no_grad()
def test_hidden_pixels_have_no_influence_whatever_their_value(path: str, value: float) -> None:
    model, x = model_of(stage_2_path=path), images(3, SIZE)
    selection = model.select(x).selection
    partial = selection.pixels.sum() < selection.mask.sum() * PATCH**2
    assert partial, "some visible patches hide some of their pixels"
    changed = torch.where(selection.pixels[:, None], x, torch.full_like(x, value))
    assert torch.equal(model.predict(changed, selection), model.predict(x, selection))
    assert not torch.equal(model.predict(x, selection), model.predict(x, replace(selection, pixels=None)))


@torch.no_grad()
def test_one_image_at_a_time_and_all_paths_agree() -> None:
    x = images(4, SIZE)
    model = model_of(stage_2_path="dense")
    together = model(x).logits
    for path in ("dense", "gathered", "packed"):
        model.stage_2.path = path
        single = torch.cat([model(image[None]).logits for image in x])
        torch.testing.assert_close(single, together, atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_a_larger_margin_shows_less_also_by_patch() -> None:
    for resolution in ("patch", "pixel"):
        model, x = model_of(mask_resolution=resolution), images(3, SIZE)
        masks = []
        for margin in (-1.0, 0.0, 1.0):
            parts = replace(model.model_config.parts, margin=margin)
            model.stage_1.config = replace(model.model_config, parts=parts)
            masks.append(model.select(x).selection.visible)
        assert not (masks[1] & ~masks[0]).any() and not (masks[2] & ~masks[1]).any()
        assert masks[0].sum() > masks[1].sum() > masks[2].sum()


def test_noise_of_margin_and_border_is_for_training_only() -> None:
    noisy = {"margin_noise": 2.0, "border_dropout": 0.5, "mask_dropout": 0.0, "part_dropout": 0.0, "gumbel": False}
    model, x = model_of(parts=noisy), images(6, SIZE)
    with torch.no_grad():
        still = model.select(x).selection.pixels
        assert torch.equal(model.select(x).selection.pixels, still)
        draws = [
            model.train().select(x, generator=torch.Generator().manual_seed(s)).selection.pixels for s in (0, 0, 1)
        ]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2]) and not torch.equal(draws[0], still)


@torch.no_grad()
def test_a_drawn_margin_is_that_margin() -> None:
    model, x = model_of(), images(2, SIZE)
    drawn = model.select(x, noise=PartNoise(margin=torch.tensor([0.0, 0.7]))).selection.pixels
    at = model_of(parts={"margin": 0.7}).select(x).selection.pixels
    assert torch.equal(drawn[0], model.select(x).selection.pixels[0]) and torch.equal(drawn[1], at[1])


def test_border_patches_are_visible_ones_beside_hidden_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    mask, drop = (torch.rand(20, 5, 7, generator=generator) < 0.7 for _ in range(2))
    expected = mask.clone()
    for b, i, j in mask.nonzero().tolist():
        near = [(i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)]
        hidden = any(0 <= r < 5 and 0 <= c < 7 and not mask[b, r, c] for r, c in near)
        expected[b, i, j] = not (hidden and drop[b, i, j])
    assert torch.equal(drop_border(mask, drop), expected) and expected.sum() < mask.sum()
    assert drop_border(torch.ones(1, 3, 3, dtype=torch.bool), torch.ones(1, 3, 3, dtype=torch.bool)).all()


@pytest.mark.parametrize("changes", [{"mask_kind": "soft"}, {"mask_gradient": "straight_through"}])
def test_gates_are_refused(changes: dict) -> None:
    with pytest.raises(UserError, match="mask_resolution=pixel needs model.mask_kind=hard"):
        model_of(**changes)


def test_late_masking_is_refused() -> None:
    with pytest.raises(UserError, match="late masking selects tokens"):
        build_model(config(name="late_masking", **PIXELS), CLASSES, SIZE)


@torch.no_grad()
def test_given_pixels() -> None:
    """The decoupled baseline sees the pixels of the true mask and nothing else."""
    model = MODELS["decoupled"](config(name="decoupled", **PIXELS), CLASSES, SIZE)
    shaken(model).eval()
    x, mask = images(2, SIZE), torch.zeros(2, *SIZE, dtype=torch.bool)
    mask[:, 5:19, 11:30] = True
    output = model(x, mask)
    assert torch.equal(output.pixels, mask) and output.mask[0].nonzero().tolist()[0] == [0, 1]
    elsewhere = torch.where(mask[:, None], x, torch.randn(x.shape))
    assert torch.equal(model(elsewhere, mask).logits, output.logits)
    assert select_given(torch.zeros_like(mask), GRID, ModelConfig(**PIXELS)).empty.all()


def test_overlap_is_counted_in_pixels() -> None:
    pixels, truth = (torch.zeros(1, 4, 4, dtype=torch.bool) for _ in range(2))
    pixels[0, 0, :3] = True
    truth[0, :2, 1] = True
    assert [int(n) for n in patch_overlap(pixels, truth)] == [1, 3, 2]


def test_selection_of_patches_or_pixels() -> None:
    pixels = torch.zeros(2, *SIZE, dtype=torch.bool)
    pixels[0, 0, 47] = True
    fine = selection_of(pixels, GRID)
    assert fine.mask.nonzero().tolist() == [[0, 0, 5]] and fine.visible is pixels
    coarse = selection_of(fine.mask, GRID)
    assert coarse.pixels is None and coarse.visible is fine.mask
    twice = Selection(fine.mask, pixels).each(lambda t: torch.cat([t, t]))
    assert twice.pixels.shape[0] == 4 and twice.maps is None
    one = fine.counted().part([1, 0, 0]).part(slice(1, None))
    assert torch.equal(one.pixels, pixels[[0, 0]]) and one.counts is not None and list(one.counts()) == [1, 1]
    others = fine.counted().joined([fine]), fine.part([0]), with_mask(fine.counted(), ~fine.mask)
    assert all(other.counts is None for other in others)


def test_attributions_at_hidden_pixels_are_zero() -> None:
    model, x = model_of(stage_2_path="dense"), images(2, SIZE)
    pixels = model.select(x).selection.pixels
    for method in ("integrated_gradients", "input_x_gradient"):
        maps = explain(model, x, method)
        assert (maps[~pixels] == 0).all() and (maps[pixels] != 0).any(), method
