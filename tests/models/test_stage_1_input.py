"""Stage 1 on another patch grid than stage 2: `model.stage_1_image_size`, or backbones of another patch size."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from common.errors import UserError
from engine.evaluation.part_thresholds import part_logits
from engine.run.config import RunConfig
from engine.run.config_checks import problems
from explain import explain
from models import build_model
from models.config import ModelConfig
from models.part_discovery import Intervention
from models.token_cache import TokenCache
from models.two_stage import TwoStageModel
from tests.models.small import config, images, shaken

SIZE, SMALL, CLASSES, PARTS = (48, 48), 32, 5, 3
HALF = {"stage_1_image_size": SMALL}


def model_of(**changes) -> TwoStageModel:
    model = build_model(config(**(HALF | changes)), CLASSES, SIZE)
    assert isinstance(model, TwoStageModel)
    shaken(model, 0, gain=1.0)
    return model.eval()


def interpolated(logits_Chw: Tensor, size: int) -> Tensor:
    """[C, size, size] by the textbook's bilinear rule, one value at a time."""
    side = logits_Chw.shape[-1]
    out = logits_Chw.new_empty(len(logits_Chw), size, size)
    for i in range(size):
        for j in range(size):
            v, u = max((i + 0.5) * side / size - 0.5, 0), max((j + 0.5) * side / size - 0.5, 0)
            rows, columns = (int(v), min(int(v) + 1, side - 1)), (int(u), min(int(u) + 1, side - 1))
            (nw, ne), (sw, se) = [[logits_Chw[:, r, c] for c in columns] for r in rows]
            a, b = v - rows[0], u - columns[0]
            out[:, i, j] = (1 - a) * ((1 - b) * nw + b * ne) + a * ((1 - b) * sw + b * se)
    return out


def test_a_size_that_is_no_multiple_of_the_patch_size_is_named() -> None:
    with pytest.raises(UserError, match=r"^model\.stage_1_image_size: \(20, 20\) is not a multiple of"):
        model_of(stage_1_image_size=20)


@pytest.mark.parametrize("resolution", ["patch", "pixel"])
@torch.no_grad()
def test_part_logits_of_the_small_image_are_interpolated_to_the_mask(resolution: str) -> None:
    model, x = model_of(mask_resolution=resolution, parts={"margin": -1.5}), images(3, SIZE)
    selection = model.select(x).selection
    small = build_model(config(), CLASSES, (SMALL, SMALL)).eval()
    small.load_state_dict(model.state_dict() | {k: v for k, v in small.state_dict().items() if "stage_2" in k})
    own = small.select(tv.resize(x, [SMALL, SMALL], antialias=True)).selection
    torch.testing.assert_close(selection.maps, own.maps, rtol=0, atol=1e-5)
    side = 48 if resolution == "pixel" else 6
    logits = torch.stack([interpolated(one, side) for one in own.logits])
    margin = logits[:, :-1].amax(1) - logits[:, -1] + 1.5
    certain = margin.abs() > 1e-3
    assert torch.equal(selection.visible[certain], (margin >= 0)[certain])
    assert selection.mask.shape == (3, 6, 6) and 0.1 < selection.visible.float().mean() < 0.95


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mask_resolution": "pixel", "parts": {"border_dropout": 0.5, "margin_noise": 0.5}},
        {"parts": {"border_dropout": 0.5, "gumbel": True}},
        {"mask_gradient": "straight_through"},
        {"mask_kind": "soft"},
        {"stage_1_image_size": 0, "stage_1_backbone": "vit_t_plain16"},
        {"stage_1_image_size": 0, "backbone": "vit_t_plain16"},
    ],
    ids=["patch", "pixel", "noise", "st", "soft", "coarse stage 1", "coarse stage 2"],
)
def test_both_stages_train_and_hidden_pixels_have_no_effect(changes: dict) -> None:
    model, x = model_of(**changes).train(), images(4, SIZE)
    out = model(x)
    (out.logits.square().sum() + out.stage_1_logits.square().sum()).backward()
    assert model.stage_1.backbone.pos_embed.grad.any() and model.stage_2.backbone.pos_embed.grad.any()
    if changes.get("mask_kind") == "soft":
        return
    model.eval()
    selection = model.select(x).selection
    tall = SIZE[0] // selection.visible.shape[1]
    visible = selection.visible.repeat_interleave(tall, 1).repeat_interleave(tall, 2)[:, None]
    changed = torch.where(visible, x, torch.randn_like(x) * 9)
    assert not torch.equal(changed, x)
    assert torch.equal(model.predict(x, selection), model.predict(changed, selection))


@torch.no_grad()
def test_the_fallback_patch_holds_the_best_patch_of_stage_1() -> None:
    model, x = model_of(), images(2, SIZE)
    score = model.select(x).selection.logits
    best = (score[:, :-1].amax(1) - score[:, -1]).flatten(1).argmax(1)
    empty = model_of(parts={"margin": 1e6}).select(x).selection
    assert empty.empty.all() and torch.equal(empty.mask.flatten(1).sum(1), torch.ones(2, dtype=torch.int64))
    for i in range(2):
        row, column = (int(v) for v in empty.mask[i].nonzero()[0])
        assert (row * 4 // 6) * 4 + column * 4 // 6 == best[i]


@torch.no_grad()
def test_every_reader_of_stage_1_sees_the_same_input(tmp_path: Path) -> None:
    model, x = model_of(), images(2, SIZE)
    plain = model.select(x).selection
    model.stage_1.token_cache = TokenCache(tmp_path, 1e9)
    for _ in range(2):
        torch.testing.assert_close(model.select(x).selection.logits, plain.logits, rtol=0, atol=1e-5)
    model.stage_1.token_cache = None
    dots, part = part_logits(model, x, torch.float32)
    assert torch.equal(part, plain.maps.argmax(1).flatten())
    limits = torch.stack([dots[part == k].median() if (part == k).any() else dots.max() for k in range(PARTS)])
    fewer = model.select(x, intervention=Intervention(thresholds=limits)).selection
    assert fewer.mask.sum() < plain.mask.sum()


@pytest.mark.parametrize("method", ["rollout", "gradcam", "lrp", "gradient", "inherent"])
def test_both_stages_are_explained_on_their_own_grid(method: str) -> None:
    model, x = model_of(), images(2, SIZE)
    for stage, side in ((1, 4), (2, 6)):
        heat = explain(model, x, method, stage=stage)
        side = {"gradient": 48, "inherent": 6}.get(method, side)
        assert heat.shape == (2, side, side) and heat.isfinite().all()
        assert heat.std() > 0


def test_models_without_two_stages_refuse_the_key() -> None:
    for changes in ({"name": "vit"}, {"name": "pdiscoformer"}, {"selector": "attention"}):
        config_of_run = RunConfig(model=ModelConfig(**(HALF | changes)))
        assert any("model.stage_1_image_size" in line for line in problems(config_of_run))
    assert not any("stage_1_image_size" in line for line in problems(RunConfig(model=ModelConfig(**HALF))))
