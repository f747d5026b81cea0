"""Both stages together: gradients, empty masks, saving and loading, invalid combinations."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from common.errors import UserError
from models import MODELS, PlainViT, TwoStageModel, build_model
from models.config import ModelConfig
from models.part_discovery import Intervention, PartNoise
from models.selection import straight_through
from models.two_stage import with_mask
from tests.models.small import config, images, shaken

SIZE = (32, 48)
CLASSES = 5


def model_of(seed: int = 0, **changes) -> TwoStageModel:
    model = build_model(config(**changes), CLASSES, SIZE)
    assert isinstance(model, TwoStageModel)
    shaken(model, seed, gain=1.0)
    return model.eval()


def all_background(model: TwoStageModel) -> TwoStageModel:
    """The same model with all foreground prototypes far away, so that every patch is background."""
    with torch.no_grad():
        model.stage_1.parts.prototypes[:-1] = 100.0
    return model


def gradients(module: nn.Module) -> dict[str, Tensor | None]:
    return {name: p.grad for name, p in module.named_parameters()}


@pytest.mark.parametrize("path", ["dense", "gathered", "packed"])
def test_detached_stage_2_loss_does_not_reach_stage_1(path: str) -> None:
    model = model_of(stage_2_path=path).train()
    model(images(4, SIZE)).logits.square().sum().backward()
    assert all(gradient is None for gradient in gradients(model.stage_1).values())
    assert all(gradient is not None for gradient in gradients(model.stage_2).values())


@pytest.mark.parametrize("changes", [{"mask_gradient": "straight_through"}, {"mask_kind": "soft"}], ids=["st", "soft"])
def test_stage_2_loss_reaches_prototypes_and_backbone_through_a_gate(changes: dict) -> None:
    model = model_of(**changes).train()
    model(images(4, SIZE)).logits.square().sum().backward()
    reached = {name for name, gradient in gradients(model.stage_1).items() if gradient is not None and gradient.any()}
    unreached = gradients(model.stage_1).keys() - reached
    assert unreached == {"parts.modulation.weight", "parts.modulation.bias", "parts.classifier.weight"}
    assert all(gradient.isfinite().all() for gradient in gradients(model).values() if gradient is not None)


def test_stage_1_loss_only_reaches_stage_1() -> None:
    model = model_of().train()
    model(images(4, SIZE)).stage_1.class_logits.square().sum().backward()
    assert all(gradient is None for gradient in gradients(model.stage_2).values())
    assert all(gradient is not None for gradient in gradients(model.stage_1).values())


def test_straight_through_has_no_gate_in_eval_or_without_gradients() -> None:
    model = model_of(mask_gradient="straight_through")
    assert model(images(2, SIZE)).stage_1.selection.gate is None
    with torch.no_grad():
        assert model.train()(images(2, SIZE)).stage_1.selection.gate is None
    selection = model(images(2, SIZE)).stage_1.selection
    assert selection.gate.requires_grad and torch.equal(selection.gate, selection.mask.float())


def test_gradient_modes_share_the_forward() -> None:
    noise = PartNoise(keep_in_mask=torch.tensor([[True, False, True]] * 3))
    outputs = []
    for mode in ("detached", "straight_through"):
        outputs.append(model_of(mask_gradient=mode).train()(images(3, SIZE), noise=noise))
    assert torch.equal(outputs[0].mask, outputs[1].mask)
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits, atol=1e-5, rtol=0)


def test_shapes_and_single_images() -> None:
    """The output for an image does not depend on the rest of the batch."""
    model, x = model_of(), images(4, SIZE)
    out = model(x)
    assert out.logits.shape == (4, 5) and out.part_logits.shape == (4, 5, 3) and out.mask.shape == (4, 4, 6)
    assert out.part_maps.shape == (4, 4, 4, 6) and out.part_features.shape == (4, 32, 4)
    torch.testing.assert_close(out.part_maps.sum(1), torch.ones(4, 4, 6))
    for i in range(4):
        single = model(x[i : i + 1])
        assert torch.equal(single.mask[0], out.mask[i])
        torch.testing.assert_close(single.logits[0], out.logits[i], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(single.part_maps[0], out.part_maps[i], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_hidden_pixels_do_not_affect_stage_2_given_the_selection() -> None:
    model, x = model_of(), images(3, SIZE)
    selection = model.select(x).selection
    assert selection.mask.any() and not selection.mask.all()
    pixels = selection.mask.repeat_interleave(8, 1).repeat_interleave(8, 2).unsqueeze(1)
    assert torch.equal(model.predict(x, selection), model.predict(torch.where(pixels, x, -x), selection))


@torch.no_grad()
def test_soft_masks_use_the_gate() -> None:
    model, x = model_of(mask_kind="soft"), images(3, SIZE)
    out = model(x)
    selection = out.stage_1.selection
    torch.testing.assert_close(selection.gate, selection.maps[:, :-1].amax(1), atol=1e-6, rtol=1e-5)
    hard = model.predict(x, with_mask(selection, selection.mask))
    assert (hard - out.logits).abs().max() > 1e-3
    one = replace(selection, gate=torch.ones_like(selection.gate))
    everything = with_mask(selection, torch.ones_like(selection.mask))
    torch.testing.assert_close(model.predict(x, one), model.predict(x, everything), atol=1e-5, rtol=0)


@torch.no_grad()
def test_with_mask_replaces_the_mask_of_stage_2() -> None:
    model, x = model_of(), images(2, SIZE)
    stage_1 = model.select(x)
    other = with_mask(stage_1.selection, ~stage_1.selection.mask)
    assert other.gate is None and torch.equal(other.maps, stage_1.selection.maps)
    assert not torch.equal(model.predict(x, other), model.predict(x, stage_1.selection))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("gradient", ["detached", "straight_through"])
def test_empty_masks_are_counted_and_finite(training: bool, gradient: str) -> None:
    x = images(3, SIZE)
    for policy, kept in (("best_token", 1), ("prefix_only", 0)):
        model = all_background(model_of(empty_mask=policy, mask_gradient=gradient)).train(training)
        out = model(x)
        selection = out.stage_1.selection
        assert selection.empty.tolist() == [True] * 3
        assert selection.mask.flatten(1).sum(1).tolist() == [kept] * 3
        out.logits.square().sum().backward()
        values = [out.logits, out.part_maps, *(p.grad for p in model.stage_2.parameters())]
        assert all(value is not None and value.isfinite().all() for value in values)
        spread = (out.logits - out.logits[:1]).abs().max()
        assert spread > 1e-3 if policy == "best_token" else spread <= 1e-6


def test_best_token_is_the_patch_with_the_largest_margin() -> None:
    selection = all_background(model_of())(images(3, SIZE)).stage_1.selection
    margin = (selection.logits[:, :-1].amax(1) - selection.logits[:, -1]).flatten(1)
    assert torch.equal(selection.mask.flatten(1).int().argmax(1), margin.argmax(1))
    assert not model_of()(images(3, SIZE)).stage_1.selection.empty.any()


def test_removing_all_parts_leaves_only_prefix_tokens_with_either_policy() -> None:
    for policy in ("best_token", "prefix_only"):
        model = model_of(empty_mask=policy, parts={"num_parts": 1})
        out = model(images(2, SIZE), intervention=Intervention(remove_parts=(0,)))
        assert not out.mask.any() and out.stage_1.selection.empty.all()
        torch.testing.assert_close(out.logits[0], out.logits[1], atol=1e-6, rtol=0)


def test_eval_is_deterministic_and_training_follows_the_generator() -> None:
    model, x = model_of(), images(3, SIZE)
    assert torch.equal(model(x).logits, model(x).logits)
    model.train()
    a, b, c = (model(x, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(a.logits, b.logits) and torch.equal(a.part_logits, b.part_logits)
    assert not torch.equal(a.part_maps, c.part_maps)


@pytest.mark.parametrize("name", ["two_stage", "vit"])
def test_saved_models_are_restored(name: str, tmp_path: Path) -> None:
    changes = {"parts": {"num_parts": 2, "temperature": 3.0}, "stage_1_backbone": "vit_nano_patch8"}
    wanted = config(name=name, pooling="ep", empty_mask="prefix_only", **changes)
    model = shaken(build_model(wanted, CLASSES, SIZE)).eval()
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.model_config == wanted and isinstance(again.model_config, ModelConfig) and not again.training
    assert torch.equal(again(images(2, SIZE)).logits, model(images(2, SIZE)).logits)
    assert json.loads((tmp_path / "config.json").read_text())["model_config"]["parts"]["temperature"] == 3.0


def test_incomplete_saved_weights_are_refused(tmp_path: Path) -> None:
    """The hub's mixin would silently leave missing weights random."""
    model_of().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    del state["stage_2.head.weight"]
    save_file(state, file)
    with pytest.raises(UserError, match=r"missing: stage_2\.head\.weight"):
        TwoStageModel.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="does not fit the model"):
        PlainViT.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"no config\.json of a TwoStageModel"):
        TwoStageModel.from_pretrained(tmp_path)


def test_build_model_is_seeded_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    a, b, c = (build_model(config(), CLASSES, SIZE, seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["stage_1.parts.prototypes"], c["stage_1.parts.prototypes"])
    assert not torch.equal(a["stage_1.backbone.pos_embed"], a["stage_2.backbone.pos_embed"])


def test_build_model_names() -> None:
    assert isinstance(build_model(config(name="vit"), CLASSES, SIZE), PlainViT)
    assert set(MODELS) == {"two_stage", "vit", "cnn", "decoupled", "late_masking", "pdiscoformer"}
    with pytest.raises(UserError, match="did you mean 'two_stage'"):
        build_model(config(name="twostage"), CLASSES, SIZE)


def test_stage_1_may_have_a_backbone_of_its_own() -> None:
    model = model_of(stage_1_backbone="vit_pico_patch8", backbone="vit_nano_patch8")
    out = model(images(2, SIZE))
    assert model.stage_1.backbone.embed_dim == 64 and model.stage_2.backbone.embed_dim == 96
    assert out.part_features.shape == (2, 64, 4) and out.logits.shape == (2, CLASSES)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stage_1_image_size": 16}, r"stage_1_image_size=16 makes square images, but data.image_size is \(32, 48\)"),
        ({"backbone": "vit_t_parallel", "mask_gradient": "straight_through"}, "mask_gradient.*ParallelScalingBlock"),
        ({"backbone": "vit_t_parallel", "stage_2_path": "packed"}, "stage_2_path=packed.*ParallelScalingBlock"),
        ({"stage_2_path": "packed", "drop_path": 0.1}, "cannot apply model.drop_path"),
        ({"backbone": "vit_t_leaky"}, "stem of 'vit_t_leaky' mixes patches"),
    ],
)
def test_invalid_combinations_are_one_line_errors(changes: dict, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        build_model(config(**changes), CLASSES, SIZE)
    assert "\n" not in str(caught.value)


def test_blocks_other_than_timms_plain_block_are_gathered() -> None:
    model = model_of(backbone="vit_t_parallel").train()
    assert model.stage_2.chosen_path() == "gathered"
    model(images(2, SIZE)).logits.sum().backward()
    build_model(config(backbone="vit_t_leaky", stage_1_backbone="", name="vit"), CLASSES, SIZE)
    soft = model_of(backbone="vit_t_parallel", mask_kind="soft", mask_gradient="straight_through")
    assert soft(images(2, SIZE)).logits.isfinite().all()


def test_straight_through_gradient_at_hidden_patches_is_limited() -> None:
    """A hidden key that would win all attention has a huge derivative, which must not dominate the others."""
    mask = torch.tensor([[True, True, False, False], [False, False, False, False]])
    margin = torch.tensor([[0.5, 0.1, -0.1, -0.2], [-1.0, -1.0, -1.0, -1.0]], requires_grad=True)
    gate = straight_through(mask, margin)
    assert torch.equal(gate, mask.float())
    pull = torch.tensor([[0.3, -0.2, 1e13, -0.1], [1.0, float("inf"), 0.0, -1.0]])
    (gate * pull).sum().backward()
    slope = torch.sigmoid(margin.detach()) * (1 - torch.sigmoid(margin.detach()))
    expected = torch.tensor([[0.3, -0.2, 0.3, -0.1], [0.0, 0.0, 0.0, 0.0]]) * slope
    torch.testing.assert_close(margin.grad, expected)


def test_a_patch_as_close_to_a_part_as_to_the_background_is_foreground() -> None:
    """The published rule is max_k y_k >= y_background: a tie goes to the part."""
    model = model_of(parts={"num_parts": 1})
    with torch.no_grad():
        model.stage_1.parts.prototypes[1] = model.stage_1.parts.prototypes[0]
    output = model(images(3, SIZE))
    assert bool(output.mask.all()) and not bool(output.empty.any())
