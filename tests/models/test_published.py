"""Published checkpoints: outputs match the formulas, and conversion to our models and back is bitwise exact."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.layers import SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from common.errors import UserError
from models.backbone import create_backbone
from models.config import ModelConfig, PartsConfig
from models.pdiscoformer import PDiscoFormer
from models.published import PublishedModel, load_published, to_published
from models.two_stage import TwoStageModel
from models.weights.huggingface import huggingface_dinov2_to_timm, timm_to_huggingface_dinov2
from models.weights.published_layout import FORMATS, Format, read_layout
from tests.models.published_states import (
    Sizes,
    State,
    forward,
    hugging_face_shapes,
    parts,
    published_shapes,
    published_state,
    stage,
    timm_shapes,
)
from tests.models.small import config, images, shaken

RAD = Sizes(registers=0)


def load(state: State, registers: bool = True, **options: Any) -> PublishedModel:
    options = {"backbone": "vit_t_dino" if registers else "vit_t_rad"} | options
    return load_published(state, "cub.pt", options.pop("config", ModelConfig()), **options)[0]


@pytest.mark.parametrize("product", [False, True], ids=["norm", "product"])
@pytest.mark.parametrize("registers", [4, 0])
@pytest.mark.parametrize("format", ["ifam", "pdiscoformer"])
@torch.no_grad()
def test_outputs_match_the_formulas(format: str, registers: int, product: bool) -> None:
    state = published_state(format, Sizes(registers=registers), product, seed=1)
    model, x = load(state, registers > 0), images(3)
    output, expected = model(x), forward(state, x)
    stage_1 = output.stage_1 if isinstance(model, TwoStageModel) else output
    close = {"atol": 2e-4, "rtol": 2e-4}
    torch.testing.assert_close(stage_1.selection.maps.flatten(2), expected.maps.float(), **close)
    torch.testing.assert_close(stage_1.part_logits, expected.part_logits.float(), **close)
    assert torch.equal(stage_1.selection.mask.flatten(1), expected.mask)
    assert 0 < expected.mask.double().mean() < 1 and expected.mask.any(1).all()
    if isinstance(model, TwoStageModel):
        assert expected.logits is not None and expected.logits.std() > 0.1
        torch.testing.assert_close(output.logits, expected.logits.float(), **close)


@pytest.mark.parametrize(("registers", "kind"), [(0, "Dinov2"), (4, "Dinov2WithRegisters")])
@torch.no_grad()
def test_hugging_faces_own_backbone(tmp_path: Path, registers: int, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    settings: dict[str, Any] = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, patch_size=8)
    settings |= dict(image_size=32, mlp_ratio=2) | ({"num_register_tokens": registers} if registers else {})
    state, x, tokens = published_state("ifam-hf", Sizes(registers=registers)), images(2), []
    for number in (1, 2):
        theirs = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**settings)).eval()
        shaken(theirs, seed=number).save_pretrained(tmp_path)  # this writes the published names
        own = {f"stage_{number}.{name}": t for name, t in load_file(tmp_path / "model.safetensors").items()}
        assert own.keys() <= state.keys()
        state |= own
        tokens.append(theirs(x).last_hidden_state)
    model = load(state, registers > 0)
    assert isinstance(model, TwoStageModel)
    maps, mask, scores = parts(stage(state, "stage_1."), tokens[0][:, 1 + registers :].double())
    found = model.select(x)
    torch.testing.assert_close(found.selection.maps.flatten(2), maps.transpose(1, 2).float(), atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(found.part_logits, scores.float(), atol=2e-4, rtol=2e-4)
    assert torch.equal(found.selection.mask.flatten(1), mask)
    torch.testing.assert_close(model.stage_2.backbone.forward_features(x), tokens[1], atol=1e-4, rtol=1e-4)
    back = to_published(model, "ifam-hf")
    own = {name: back[f"stage_2.{name}"] for name in load_file(tmp_path / "model.safetensors")}
    save_file(own, tmp_path / "model.safetensors", metadata={"format": "pt"})
    again = getattr(transformers, f"{kind}Model").from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(x).last_hidden_state, tokens[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("format", "registers", "product"),
    [
        ("ifam", 4, False),
        ("ifam", 0, False),
        ("ifam-hf", 0, False),
        ("pdiscoformer", 4, False),
        ("pdiscoformer", 4, True),
    ],
)
def test_published_states_survive_a_round_trip(format: Format, registers: int, product: bool) -> None:
    state = published_state(format, Sizes(registers=registers), product)
    back = to_published(load(state, registers > 0), format)
    assert back.keys() == state.keys()
    mask_tokens = {name for name in state if name.endswith("mask_token")}
    assert len(mask_tokens) == (2 if format == "ifam-hf" else 0) and all(not back[name].any() for name in mask_tokens)
    assert [name for name in state if name not in mask_tokens and not torch.equal(back[name], state[name])] == []


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("backbone", ["vit_t_dino", "vit_t_rad"])
@pytest.mark.parametrize("modulation", ["layer_norm", "original"])
def test_our_models_survive_a_round_trip(format: Format, backbone: str, modulation: str) -> None:
    kind = PDiscoFormer if format == "pdiscoformer" else TwoStageModel
    model = kind(config(backbone=backbone, parts={"modulation": modulation}), 5, (32, 32))
    shaken(model)
    published = to_published(model, format)
    sizes = Sizes(registers=4 if backbone == "vit_t_dino" else 0)
    assert {name: tuple(t.shape) for name, t in published.items()} == published_shapes(
        format, sizes, modulation != "layer_norm"
    )
    again = load(published, backbone=backbone).state_dict()
    assert again.keys() == model.state_dict().keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())


def test_layout_from_shapes() -> None:
    sizes = Sizes(registers=4, parts=8, classes=200)
    for format in FORMATS:
        layout = read_layout(published_state(format, sizes), "file")
        assert (layout.format, layout.num_parts, layout.num_classes) == (format, 8, 200)
        assert (layout.width, layout.depth, layout.patch, layout.registers) == (32, 3, (8, 8), 4)
        assert (layout.num_patches, layout.image_size, layout.backbone) == (16, (32, 32), None)
    model = load(published_state("ifam-hf", RAD), registers=False)
    assert (model.model_config.name, model.model_config.parts.num_parts) == ("two_stage", 3)
    assert isinstance(model, TwoStageModel) and model.stage_2.head.out_features == 5
    assert not model.training


@pytest.mark.parametrize(
    ("width", "depth", "size"), [(384, 12, "small"), (768, 12, "base"), (1024, 24, "large"), (1536, 40, "giant")]
)
@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("format", FORMATS)
def test_dinov2_is_recognised_by_its_shapes(format: Format, width: int, depth: int, size: str, registers: int) -> None:
    sizes = dinov2(width, depth, registers)
    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, shape in published_shapes(format, sizes).items()}
    layout = read_layout(state, "file")
    assert layout.backbone == f"vit_{size}_patch14_{'reg4_' if registers else ''}dinov2"
    assert layout.image_size == (518, 518)


def dinov2(width: int, depth: int, registers: int) -> Sizes:
    gated = width == 1536
    return Sizes(width, depth, 4096 if gated else 4 * width, 14, 37 * 37, registers, gated=gated)


@pytest.mark.parametrize(("name", "width", "registers"), [("base_patch14_reg4", 768, 4), ("giant_patch14", 1536, 0)])
def test_the_named_backbone_has_these_shapes(name: str, width: int, registers: int) -> None:
    sizes = dinov2(width, 40 if width == 1536 else 12, registers)
    with torch.device("meta"):
        vit = create_backbone(f"vit_{name}_dinov2", (518, 518))
    assert {key: tuple(t.shape) for key, t in vit.state_dict().items()} == timm_shapes(sizes)


def test_gated_mlps_have_hugging_faces_names() -> None:
    sizes = Sizes(registers=4, gated=True)
    settings: dict[str, Any] = dict(patch_size=8, embed_dim=32, depth=3, num_heads=2, reg_tokens=4, init_values=1e-5)
    settings |= dict(mlp_ratio=4, mlp_layer=SwiGLUPacked, act_layer=nn.SiLU, no_embed_class=True)
    vit = VisionTransformer(img_size=32, num_classes=0, **settings)
    theirs = timm_to_huggingface_dinov2(vit.state_dict(), 16)
    assert {name: tuple(t.shape) for name, t in theirs.items()} == hugging_face_shapes(sizes)
    back = huggingface_dinov2_to_timm(theirs)
    same = [name for name, tensor in vit.state_dict().items() if torch.equal(back[name], tensor)]
    assert vit.state_dict().keys() - same == {"pos_embed"}, "only the class token's position is added"


@torch.no_grad()
def test_another_image_size_resamples_both_position_tables() -> None:
    state = published_state("ifam")
    model = load(state, image_size=(48, 64))
    assert isinstance(model, TwoStageModel)
    assert model(images(2, (48, 64))).part_maps.shape == (2, 4, 6, 8)
    tables = [model.stage_1.backbone.pos_embed, model.stage_2.backbone.pos_embed]
    for number, table in enumerate(tables, start=1):
        torch.testing.assert_close(table.mean(1), state[f"stage_{number}.pos_embed"].mean(1), atol=0.1, rtol=0)


def test_non_square_grid_needs_an_image_size() -> None:
    state = published_state("ifam-hf", Sizes(patches=24))
    with pytest.raises(UserError, match="--image-size: cub.pt has 24 patches, not a square; give height and width"):
        load(state)
    model = load(state, image_size=(32, 48))
    table = state["stage_1.embeddings.position_embeddings"][:, 1:]
    assert torch.equal(model.stage_1.backbone.pos_embed, table), "25 positions are no 5 x 5 grid"


def test_settings_not_in_the_weights_are_kept() -> None:
    wanted = ModelConfig(empty_mask="prefix_only", stage_1_backbone="vit_other", parts=PartsConfig(temperature=2.0))
    kept = load(published_state("ifam"), config=wanted).model_config
    assert (kept.empty_mask, kept.parts.temperature, kept.stage_1_backbone) == ("prefix_only", 2.0, "")
    assert (kept.parts.num_parts, kept.backbone) == (3, "vit_t_dino")


@pytest.mark.parametrize("format", ["ifam", "ifam-hf"])
def test_tensors_without_effect_may_be_missing(format: str) -> None:
    state = published_state(format, RAD)
    bare = {name: t for name, t in state.items() if not name.endswith(("mask_token", "prefix_attn_mask"))}
    with_them, without = load(state, registers=False).state_dict(), load(bare, registers=False).state_dict()
    assert all(torch.equal(without[name], tensor) for name, tensor in with_them.items())


LOST_KEY = "stage_1.encoder.layer.1.attention.attention.key.bias"
DAMAGE = {
    "lost head": ("ifam", "stage_2.head.weight", "lost", "missing: stage_2.head.weight"),
    "lost third of qkv": ("ifam-hf", LOST_KEY, "lost", f"missing: {LOST_KEY}"),
    "lost prototypes": ("ifam", "stage_1.fc_landmarks.weight", "lost", "no stage_1.fc_landmarks.weight in it"),
    "lost prototypes of one stage": ("pdiscoformer", "fc_landmarks.weight", "lost", "no fc_landmarks.weight in it"),
    "lost classes": (
        "ifam",
        "stage_1.fc_class_landmarks.weight",
        "lost",
        "stage_1.fc_class_landmarks.weight is missing",
    ),
    "more in a block": ("ifam", "stage_1.blocks.0.attn.x", "changed", "unexpected: stage_1.blocks.0.attn.x"),
    "more outside": ("ifam", "module.step", "changed", "unexpected: module.step"),
    "more beside": ("ifam-hf", "stage_2.pooler.weight", "changed", "unexpected: stage_2.pooler.weight"),
    "a head more": ("pdiscoformer", "head.weight", "changed", "unexpected: head.weight"),
    "norm": ("ifam", "stage_2.norm.bias", "changed", "wrong shape: stage_2.norm.bias (1, 7, 32) instead of (32,)"),
    "positions": ("ifam", "stage_2.pos_embed", "changed", "wrong shape: stage_2.backbone.pos_embed (1, 7, 32)"),
    "patches": ("ifam", "stage_1.patch_embed.proj.weight", "changed", "proj.weight has the shape (1, 7, 32)"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_tensors_that_do_not_fit_are_named(damage: str) -> None:
    format, name, change, message = DAMAGE[damage]
    state = published_state(format, RAD) | {name: torch.zeros(1, 7, 32)}
    if change == "lost":
        del state[name]
    with pytest.raises(UserError, match=rf"cub\.pt.*{re.escape(message)}") as caught:
        load(state, registers=False)
    assert "\n" not in str(caught.value)


def test_backbone_must_be_given_if_shapes_do_not_determine_it() -> None:
    with pytest.raises(UserError, match="--backbone: give timm's name .* cub.pt holds ifam, 3 parts .*32, 3 blocks"):
        load_published(published_state("ifam"), "cub.pt", ModelConfig())
    with pytest.raises(UserError, match=r"cub.pt does not fit the model; .*wrong shape"):
        load(published_state("ifam"), backbone="vit_t_plain16", image_size=(32, 32))


def test_models_without_a_published_format_are_refused() -> None:
    def model(**changes: Any) -> TwoStageModel:
        return TwoStageModel(config(**changes), 2, (32, 32))

    with pytest.raises(UserError, match="pdiscoformer is not a format for a TwoStageModel"):
        to_published(model(), "pdiscoformer")
    with pytest.raises(UserError, match="ifam is not a format for a PDiscoFormer"):
        to_published(PDiscoFormer(config(), 2, (32, 32)), "ifam")
    with pytest.raises(UserError, match=r"no model\.parts\.logit_scale"):
        to_published(model(parts={"logit_scale": 0.5}), "ifam")
    with pytest.raises(UserError, match=r"this backbone has no patch_embed\.proj\.weight"):
        to_published(model(backbone="vit_nano_patch8"), "ifam")
    with pytest.raises(UserError, match=r"no place for the weight (norm_pre|blocks\.0\.attn\.q_norm)"):
        to_published(model(backbone="vit_t_qknorm"), "ifam-hf")
    with pytest.raises(UserError, match="needs position embeddings of the class token and of every patch"):
        timm_to_huggingface_dinov2({"pos_embed": torch.zeros(1, 21, 32)}, 16)
