"""The two-stage model with a fixed selector: what is frozen, what is hidden, weights, errors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from common.errors import UserError
from engine.run.config import OptimConfig
from engine.training.optim import PARAM_GROUP_RULES, build_optimizer, parameter_groups
from explain import explain
from models import SelectedViT, TwoStageModel, build_model
from models.baseline import PlainViT
from models.interface import gives_mask, is_two_stage, needs_mask, selects_patches
from models.selection import Selection
from tests.models.small import backbone, config, images, shaken
from tests.models.textbook import stage_two

SIZE, GRID, CLASSES, PATCH = (32, 48), (4, 6), 5, 8
MAPS = ("attention", "rollout", "gradcam", "pca", "random")
GIVEN = ("given", "given_background")
every_map = pytest.mark.parametrize("selector", MAPS)
every_selector = pytest.mark.parametrize("selector", (*MAPS, *GIVEN))


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a run of a plain ViT: best/ with weights and config.json, and a checkpoint of the whole run."""
    folder = tmp_path_factory.mktemp("plain")
    model = build_model(config(name="vit"), CLASSES, SIZE)
    shaken(model, 5)
    model.save_pretrained(folder / "best")
    state = load_file(folder / "best" / "model.safetensors")
    (folder / "checkpoints").mkdir()
    twice = {f"ema/{k}": t for k, t in state.items()} | {f"model/{k}": t + 1 for k, t in state.items()}
    save_file(twice | {"optimizer/0": torch.zeros(1)}, folder / "checkpoints" / "last.safetensors")
    return folder


@pytest.fixture
def model_of(plain_run: Path) -> Callable[..., SelectedViT]:
    def make(selector: str, **changes: Any) -> SelectedViT:
        weights = {"selector_weights": str(plain_run)} if selector == "gradcam" else {}
        model = build_model(config(selector=selector, **(weights | changes)), CLASSES, SIZE)
        assert isinstance(model, SelectedViT)
        shaken(model.stage_2, 1)
        if selector != "gradcam":
            shaken(model.selector, 2)
        return model.eval()

    return make


def true_masks(batch: int = 3) -> Tensor:
    mask = torch.zeros(batch, *SIZE, dtype=torch.bool)
    for i in range(batch):
        mask[i, 3 + 5 * i : 25, 7 : 30 + 4 * i] = True
    return mask


def inputs(selector: str, batch: int = 3) -> tuple[Tensor, ...]:
    return (images(batch, SIZE), true_masks(batch)) if selector in GIVEN else (images(batch, SIZE),)


@every_selector
@torch.no_grad()
def test_it_is_stage_2_on_the_selected_patches(selector: str, model_of: Callable[..., SelectedViT]) -> None:
    model, (x, *mask) = model_of(selector), inputs(selector)
    output = model(x, *mask)
    assert isinstance(model.stage_2.fc_norm, nn.LayerNorm) and model.stage_2.head.bias is None
    hidden = torch.where(output.mask.flatten(1), 0.0, -torch.inf)
    torch.testing.assert_close(output.logits, stage_two(model.stage_2, x, hidden), atol=1e-4, rtol=1e-4)
    if selector in MAPS:
        assert output.mask.flatten(1).sum(1).tolist() == [6] * 3
        assert torch.equal(model.selection(x).mask, output.mask)
    assert gives_mask(model) and needs_mask(model) == (selector in GIVEN) == (not selects_patches(model))
    assert not is_two_stage(model) and not model.finds_parts


@pytest.mark.parametrize("resolution", ["patch", "pixel"])
@torch.no_grad()
def test_given_masks_and_their_complement(resolution: str, model_of: Callable[..., SelectedViT]) -> None:
    x, mask = inputs("given")
    shown = model_of("given", mask_resolution=resolution)(x, mask)
    rest = model_of("given_background", mask_resolution=resolution)(x, mask)
    if resolution == "pixel":
        assert torch.equal(shown.pixels, mask) and torch.equal(rest.pixels, ~mask)
    else:
        centres = mask[:, 4::PATCH, 4::PATCH]
        assert torch.equal(shown.mask, centres) and torch.equal(rest.mask, ~centres)


@pytest.mark.parametrize("resolution", ["patch", "pixel"])
@every_selector
@torch.no_grad()
def test_hidden_pixels_have_no_influence(selector: str, resolution: str, model_of: Callable[..., SelectedViT]) -> None:
    model, (x, *mask) = model_of(selector, mask_resolution=resolution), inputs(selector)
    selection = model.selection(x, *mask)
    visible = selection.visible
    if resolution == "patch":
        visible = visible.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)
    elif selector in MAPS:
        assert selection.pixels.flatten(1).sum(1).tolist() == [32 * 48 // 4] * 3
    changed = torch.where(visible[:, None], x, images(3, SIZE, seed=9))
    assert torch.equal(model.predict(changed, selection), model.predict(x, selection))
    assert not torch.equal(model.predict(-x, selection), model.predict(x, selection))
    if selector in GIVEN:
        assert torch.equal(model(changed, *mask).logits, model(x, *mask).logits)


@pytest.mark.parametrize("resolution", ["patch", "pixel"])
@every_selector
@torch.no_grad()
def test_one_image_at_a_time_gives_the_same(
    selector: str, resolution: str, model_of: Callable[..., SelectedViT]
) -> None:
    model, given = model_of(selector, mask_resolution=resolution), inputs(selector, 4)
    together = model(*given)
    single = [model(*(t[i : i + 1] for t in given)) for i in range(4)]
    assert torch.equal(together.mask, torch.cat([one.mask for one in single]))
    torch.testing.assert_close(together.logits, torch.cat([one.logits for one in single]), atol=2e-5, rtol=1e-5)


@every_selector
def test_training_changes_stage_2_alone(selector: str, model_of: Callable[..., SelectedViT]) -> None:
    model, given = model_of(selector, pooling="cls"), inputs(selector)
    optim = OptimConfig(name="sgd", lr=0.1, weight_decay=0.1, freeze_stage_1=False)
    optimizer = build_optimizer(model, PARAM_GROUP_RULES[model.parameter_rules](optim), optim, 0.1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    assert model.stage_2.training and not any(part.training for part in model.selector.modules())
    masks = [model(*given).mask]
    for _ in range(2):
        model(*given).logits.square().sum().backward()
        assert all(p.grad is None and not p.requires_grad for p in model.selector.parameters())
        optimizer.step()
        optimizer.zero_grad()
    masks.append(model(*given).mask)
    masks.append(model.eval()(*given).mask)
    assert all(torch.equal(mask, masks[0]) for mask in masks)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if name.startswith("stage_2.")}


def test_stage_2_has_the_rates_of_the_two_stage_model(model_of: Callable[..., SelectedViT]) -> None:
    config_of_run = OptimConfig(stage_2_lr_mult=3.0, freeze_stage_2_blocks=1)

    def rates(model: nn.Module) -> dict[str, tuple[float, float]]:
        names = {id(p): name for name, p in model.named_parameters()}
        groups = parameter_groups(model, PARAM_GROUP_RULES["two_stage"](config_of_run), config_of_run, 0.05)
        return {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}

    expected = rates(build_model(config(), CLASSES, SIZE))
    assert rates(model_of("attention")) == {n: rate for n, rate in expected.items() if n.startswith("stage_2.")}


def test_a_selector_with_batch_statistics_keeps_them(plain_run: Path, tmp_path: Path) -> None:
    plain = build_model(config(name="vit", pooling="aim"), CLASSES, SIZE)
    plain.save_pretrained(tmp_path)
    chosen = config(selector="gradcam", selector_weights=str(tmp_path), pooling="aim")
    model = build_model(chosen, CLASSES, SIZE).train()
    before = model.selector.pool.norm.running_mean.clone()
    model(images(4, SIZE))
    assert torch.equal(model.selector.pool.norm.running_mean, before)


@pytest.mark.parametrize("selector", ["attention", "rollout", "pca"])
def test_the_selector_s_backbone_is_loaded(selector: str, tmp_path: Path) -> None:
    first, second = (backbone("vit_t_dino", SIZE, seed).state_dict() for seed in (4, 5))
    save_file(first, tmp_path / "1.safetensors")
    save_file(second, tmp_path / "2.safetensors")
    weights = {"weights": str(tmp_path / "2.safetensors")}
    shared = build_model(config(selector=selector, **weights), CLASSES, SIZE)
    other = build_model(
        config(selector=selector, stage_1_weights=str(tmp_path / "1.safetensors"), **weights), CLASSES, SIZE
    )
    for model, state in ((shared, second), (other, first)):
        assert all(torch.equal(tensor, state[key]) for key, tensor in model.selector.state_dict().items())
        assert all(torch.equal(tensor, second[key]) for key, tensor in model.stage_2.backbone.state_dict().items())


@every_selector
@torch.no_grad()
def test_saved_and_read_back(selector: str, tmp_path: Path, model_of: Callable[..., SelectedViT]) -> None:
    model, given = model_of(selector, selector_keep=0.4), inputs(selector, 2)
    model.save_pretrained(tmp_path)
    again = SelectedViT.from_pretrained(tmp_path)
    assert again.model_config == model.model_config and not again.training
    assert torch.equal(again(*given).logits, model(*given).logits)
    with pytest.raises(UserError, match=f"model.selector={selector} makes a SelectedViT"):
        TwoStageModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("where", ["", "best", "best/model.safetensors", "checkpoints/last.safetensors"])
def test_a_plain_vit_is_read_from_a_run_or_a_checkpoint(where: str, plain_run: Path) -> None:
    model = build_model(config(selector="gradcam", selector_weights=str(plain_run / where)), CLASSES, SIZE)
    assert isinstance(model.selector, PlainViT)
    state = load_file(plain_run / "best" / "model.safetensors")
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.selector.state_dict().items())


@torch.no_grad()
def test_grad_cam_patches_are_those_of_the_explanation(plain_run: Path) -> None:
    model = build_model(config(selector="gradcam", selector_weights=str(plain_run)), CLASSES, SIZE)
    plain, x = PlainViT.from_pretrained(plain_run / "best"), images(4, SIZE)
    largest = explain(plain, x, "gradcam", relu=False).flatten(1).topk(6).indices
    mask = model.selection(x).mask.flatten(1)
    assert mask.gather(1, largest).all() and mask.sum() == 24


@every_map
def test_stage_2_is_explained_for_the_selected_patches(selector: str, model_of: Callable[..., SelectedViT]) -> None:
    model, x = model_of(selector, stage_2_path="dense"), images(2, SIZE)
    hidden = ~model.selection(x).mask
    for method in ("rollout", "gradcam", "lrp"):
        maps = explain(model, x, method)
        assert (maps[hidden] == 0).all() and (maps[~hidden] != 0).any(), method
    with pytest.raises(UserError, match="inherent needs"):
        explain(model, x, "inherent")


@pytest.mark.parametrize("resolution", ["patch", "pixel"])
@every_map
def test_maps_are_computed_in_full_precision_under_autocast(
    selector: str, resolution: str, model_of: Callable[..., SelectedViT]
) -> None:
    model, x = model_of(selector, mask_resolution=resolution), images(3, SIZE)
    exact = model.selection(x).visible
    with torch.autocast("cpu", torch.bfloat16):
        scores, rounded = model._scores(x), model(x)
    assert scores.dtype == torch.float32 and rounded.logits.isfinite().all()
    shown = rounded.mask if resolution == "patch" else rounded.pixels
    assert shown.sum() == exact.sum() and (shown == exact).float().mean() > 0.9
    assert all(len(set(row)) == 24 for row in scores.tolist()), "rounded values would be equal"


def test_a_given_mask_is_not_explained(model_of: Callable[..., SelectedViT]) -> None:
    with pytest.raises(UserError, match="depend on a given mask"):
        explain(model_of("given"), images(1, SIZE), "rollout")


@torch.no_grad()
def test_predict_takes_any_selection(model_of: Callable[..., SelectedViT]) -> None:
    model, x = model_of("random"), images(2, SIZE)
    mask = true_masks(2)[:, 4::PATCH, 4::PATCH]
    assert torch.equal(model.predict(x, Selection(mask)), model_of("given")(x, true_masks(2)).logits)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mask_kind": "soft"}, "selector=attention gives a fixed mask: it needs model.mask_kind=hard"),
        ({"mask_gradient": "straight_through"}, "selector=attention gives a fixed mask.*mask_gradient=detached"),
        ({"name": "vit"}, "selector=attention replaces stage 1 of model.name=two_stage; model.name=vit has none"),
        ({"selector": "gradcam"}, "selector=gradcam needs model.selector_weights"),
        ({"selector_weights": "x"}, "selector_weights is for model.selector=gradcam"),
        ({"selector": "gradcam", "selector_weights": "/nowhere/run"}, "selector_weights: no file /nowhere/run"),
        ({"stage_1_backbone": "vit_t_plain16"}, r"stage_1_backbone: its patch grid \(2, 3\) is not .*\(4, 6\)"),
        ({"stage_1_backbone": "vit_t_parallel"}, "timm's plain blocks; its backbone has ParallelScalingBlock"),
        ({"backbone": "vit_t_leaky"}, "the stem of 'vit_t_leaky' mixes patches"),
        ({"weights": "/nowhere/w.safetensors"}, "no such file /nowhere/w.safetensors"),
    ],
)
def test_what_cannot_be_done_is_refused(changes: dict, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        build_model(config(**{"selector": "attention", **changes}), CLASSES, SIZE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        ({"config": {"name": "decoupled"}}, "has model.name=decoupled; this config needs vit"),
        ({"config": {"name": "vit", "backbone": "vit_t_rad"}}, "has model.backbone=vit_t_rad; this config needs vit_t"),
        ({"config": {"name": "vit", "pooling": "avg"}}, "has model.pooling=avg; this config needs cls"),
        ({"size": (48, 48)}, r"has image_size=\[48, 48\]; this config needs \[32, 48\]"),
        ({"classes": 2}, "has num_classes=2; this config needs 5"),
    ],
)
def test_another_plain_vit_is_refused(saved: dict, words: str, tmp_path: Path) -> None:
    kind = config(**saved.get("config", {"name": "vit"}))
    build_model(kind, saved.get("classes", CLASSES), saved.get("size", SIZE)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=words):
        build_model(config(selector="gradcam", selector_weights=str(tmp_path)), CLASSES, SIZE)


@pytest.mark.parametrize("content", [None, "{", "[1]", json.dumps({"model_config": 3})])
def test_a_checkpoint_without_its_config_is_refused(content: str | None, plain_run: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((plain_run / "best" / "model.safetensors").read_bytes())
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match="no config.json beside" if content is None else "is damaged"):
        build_model(config(selector="gradcam", selector_weights=str(tmp_path)), CLASSES, SIZE)
