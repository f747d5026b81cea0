"""Decoupled and late-masking ViTs: masks of patches, published formulas, influence of hidden pixels."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from common.errors import UserError
from models import build_model
from models.config import ModelConfig
from models.given_mask import DecoupledViT, GivenMaskModel, LateMaskingViT, select_given
from models.selection import Selection
from tests.models.small import backbone, config, images, shaken
from tests.models.textbook import stage_two

SIZE, GRID, CLASSES = (32, 48), (4, 6), 5
NAMES = ("decoupled", "late_masking")


def model_of(name: str, **changes: str) -> GivenMaskModel:
    model = build_model(config(name=name, **changes), CLASSES, SIZE)
    assert isinstance(model, GivenMaskModel)
    shaken(model, 1)
    return model.eval()


def pixel_masks(batch: int = 3) -> Tensor:
    """[B, 32, 48] bool: rectangles that cut through patches."""
    mask = torch.zeros(batch, *SIZE, dtype=torch.bool)
    for i in range(batch):
        mask[i, 3 + 5 * i : 25, 7 : 30 + 4 * i] = True
    return mask


def slow_patches(mask: Tensor) -> Tensor:
    """[B, 4, 6] bool: the pixel below and right of the centre of every 8 x 8 patch (nearest-exact)."""
    rows = [[[bool(m[8 * i + 4, 8 * j + 4]) for j in range(GRID[1])] for i in range(GRID[0])] for m in mask]
    return torch.tensor(rows)


def test_patches_take_the_value_of_their_centre_pixel() -> None:
    mask = pixel_masks()
    selection = select_given(mask, GRID, ModelConfig())
    assert torch.equal(selection.mask, slow_patches(mask))
    assert 0.1 < selection.mask.float().mean() < 0.9 and not selection.empty.any()


def test_object_without_a_centre_pixel_keeps_the_patch_it_covers_most() -> None:
    mask = torch.zeros(3, *SIZE, dtype=torch.bool)
    mask[0, 6:8, 9:12] = True  # in patch (0, 1), six pixels
    mask[0, 8, 9] = True  # one pixel in the patch below
    mask[2, 4, 4] = True
    kept = select_given(mask, GRID, ModelConfig())
    assert kept.mask[0].nonzero().tolist() == [[0, 1]]
    assert not kept.mask[1].any(), "no object, so no patch is kept"
    assert kept.mask[2].nonzero().tolist() == [[0, 0]]
    assert kept.empty.tolist() == [True, True, False]
    published = select_given(mask, GRID, ModelConfig(empty_mask="prefix_only"))
    assert published.mask.flatten(1).sum(1).tolist() == [0, 0, 1] and published.empty.tolist() == [True, True, False]


@torch.no_grad()
def test_decoupled_is_the_textbook_s_masked_vit_without_a_new_norm() -> None:
    model, x, mask = model_of("decoupled"), images(3, SIZE), pixel_masks()
    assert isinstance(model, DecoupledViT)
    assert isinstance(model.stage_2.fc_norm, nn.Identity) and model.stage_2.head.bias is None
    hidden = torch.where(slow_patches(mask).flatten(1), 0.0, -torch.inf)
    torch.testing.assert_close(model(x, mask).logits, stage_two(model.stage_2, x, hidden), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_late_masking_averages_the_kept_tokens_over_all_patches() -> None:
    model, x, mask = model_of("late_masking"), images(3, SIZE), pixel_masks()
    assert isinstance(model, LateMaskingViT)
    tokens = model.backbone.forward_features(x)[:, model.backbone.num_prefix_tokens :]
    kept = slow_patches(mask).flatten(1)
    rows = []
    for b in range(len(x)):
        total = torch.zeros(tokens.shape[-1])
        for u in range(24):
            if kept[b, u]:
                total = total + tokens[b, u]
        rows.append(total / 24)
    expected = torch.stack(rows) @ model.head.weight.T + model.head.bias
    out = model(x, mask)
    torch.testing.assert_close(out.logits, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(out.mask, kept.unflatten(1, GRID)) and not out.empty.any()


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@torch.no_grad()
def test_hidden_pixels_affect_late_masking_but_not_decoupled(training: bool) -> None:
    x, mask = images(3, SIZE), pixel_masks()
    hidden = ~slow_patches(mask).repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
    changed = torch.where(hidden, images(3, SIZE, seed=9), x)
    assert not torch.equal(changed, x)
    decoupled, late = model_of("decoupled").train(training), model_of("late_masking").train(training)
    assert torch.equal(decoupled(x, mask).logits, decoupled(changed, mask).logits)
    assert (late(x, mask).logits - late(changed, mask).logits).abs().max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_gets_a_gradient(name: str) -> None:
    model = model_of(name).train()
    model(images(3, SIZE), pixel_masks()).logits.square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_predict_takes_any_selection(name: str) -> None:
    model, x, mask = model_of(name), images(3, SIZE), pixel_masks()
    shown = model.predict(x, Selection(slow_patches(mask)))
    assert torch.equal(shown, model(x, mask).logits)
    assert not torch.allclose(shown, model.predict(x, Selection(~slow_patches(mask))))


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_read_back(name: str, tmp_path: Path) -> None:
    model, x, mask = model_of(name), images(2, SIZE), pixel_masks(2)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert not again.training and again.model_config == model.model_config
    assert torch.equal(again(x, mask).logits, model(x, mask).logits)


@pytest.mark.parametrize("name", NAMES)
def test_pretrained_weights_fill_the_backbone(name: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = backbone("vit_t_dino", SIZE, seed=4).state_dict()
    save_file(state, tmp_path / "vit.safetensors")
    model = build_model(config(name=name, weights=str(tmp_path / "vit.safetensors")), CLASSES, SIZE)
    vit = model.stage_2.backbone if name == "decoupled" else model.backbone
    assert all(torch.equal(tensor, state[key]) for key, tensor in vit.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backbone": "vit_t_leaky"}, "the stem of 'vit_t_leaky' mixes patches"),
        ({"backbone": "vit_t_parallel", "stage_2_path": "packed"}, "stage_2_path=packed.*ParallelScalingBlock"),
        ({"drop_path": 0.1, "stage_2_path": "packed"}, "cannot apply model.drop_path"),
    ],
)
def test_decoupled_refuses_unfaithful_backbones(changes: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_model(config(name="decoupled", **changes), CLASSES, SIZE)
