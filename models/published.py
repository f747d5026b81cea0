"""Checkpoints published with iFAM and PDiscoFormer: read into our models, and ours under their names."""

from dataclasses import replace

import torch
from timm.models.vision_transformer import VisionTransformer

from common.errors import UserError
from models.backbone import grid_of
from models.config import ModelConfig
from models.pdiscoformer import PDiscoFormer
from models.two_stage import TwoStageModel
from models.weights.checkpoints import check_fit, fit_positions, load_into
from models.weights.huggingface import State, huggingface_dinov2_to_timm, timm_to_huggingface_dinov2
from models.weights.published_layout import CLASSIFIER, PATCHES, POSITIONS, PROTOTYPES, Form, Layout, read_layout

PublishedModel = TwoStageModel | PDiscoFormer
_KEY_MASK = "stage_2.prefix_attn_mask"
_STAGE_1 = {
    PROTOTYPES: "parts.prototypes",
    CLASSIFIER: "parts.classifier.weight",
    "modulation.weight": "parts.modulation.weight",
    "modulation.bias": "parts.modulation.bias",
    "modulation": "parts.modulation.weight",
}
_STAGE_2 = {name: name for name in ("fc_norm.weight", "fc_norm.bias", "head.weight")}


def _stages(form: Form) -> list[tuple[str, str, dict[str, str]]]:
    """(published prefix, our prefix, published name -> our name of what is no backbone) of each stage."""
    if form == "pdiscoformer":
        return [("", "stage_1.", _STAGE_1)]
    return [("stage_1.", "stage_1.", _STAGE_1), ("stage_2.", "stage_2.", _STAGE_2)]


def load_published(
    state: State,
    source: str,
    config: ModelConfig,
    backbone: str | None = None,
    image_size: tuple[int, int] | None = None,
) -> tuple[PublishedModel, Layout]:
    """Our model with the weights of a published state dict, in eval mode, and what the state dict told of it.

    `config` gives what weights do not tell (temperature, empty masks, ...). `backbone`: timm's name, where the shapes
    leave several. `image_size`: (height, width) in pixels; another than the checkpoint's resamples the positions.
    Raises UserError naming missing, unexpected and misshapen tensors.
    """
    layout = read_layout(state, source)
    size, name = image_size or layout.image_size, backbone or layout.backbone
    if size is None:
        raise UserError(f"--image-size: {source} has {layout.num_patches} patches, no square; give height and width")
    if name is None:
        raise UserError(f"--backbone: timm's name of the backbone is needed; {source} holds {layout}")
    one_stage = layout.form == "pdiscoformer"
    config = replace(
        config,
        name="pdiscoformer" if one_stage else "two_stage",
        backbone=name,
        stage_1_backbone="",
        stage_1_weights="",
        parts=replace(config.parts, num_parts=layout.num_parts, modulation=layout.modulation),
    )
    model = (PDiscoFormer if one_stage else TwoStageModel)(config, layout.num_classes, size)
    _check_names(state, to_published(model, layout.form), source)
    load_into(model, _with_positions(to_ours(state, layout.form), model), source)
    return model.eval(), layout


def _check_names(state: State, expected: State, source: str) -> None:
    """Compare in the file's own names. What is inert may be absent; positions of any number can be resampled."""
    inert = {name for name in expected if name == _KEY_MASK or name.endswith("embeddings.mask_token")}
    tables = {name for name in expected if name.endswith((POSITIONS, "position_embeddings"))} & state.keys()
    loose = {name for name in tables if state[name].ndim == 3 and state[name].shape[::2] == expected[name].shape[::2]}
    check_fit(expected, state | {name: expected[name] for name in loose | inert}, source)


def _with_positions(state: State, model: PublishedModel) -> State:
    """The position tables, resampled to the model's grid where they are of another."""
    for name, vit in _backbones(model).items():
        start = f"{name}.backbone."
        backbone = {key.removeprefix(start): t for key, t in state.items() if key.startswith(start)}
        state = state | {f"{start}{key}": t for key, t in fit_positions(backbone, vit).items()}
    return state


def _backbones(model: PublishedModel) -> dict[str, VisionTransformer]:
    stages = {"stage_1": model.stage_1.backbone}
    return stages | ({"stage_2": model.stage_2.backbone} if isinstance(model, TwoStageModel) else {})


def to_ours(state: State, form: Form) -> State:
    """Published names to our models'; positions stay as they are."""
    ours: State = {}
    for prefix, own, heads in _stages(form):
        stage = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
        stage.pop(_KEY_MASK.removeprefix(prefix), None)
        for name in heads.keys() & stage.keys():
            tensor = stage.pop(name)
            ours[own + heads[name]] = tensor.flatten(1) if name == PROTOTYPES else tensor
        backbone = _timm_backbone(stage) if form == "ifam-hf" else stage
        ours |= {f"{own}backbone.{name}": tensor for name, tensor in backbone.items()}
    return ours


def _timm_backbone(state: State) -> State:
    """From Hugging Face's naming. With registers, timm keeps the class token's position in the token itself."""
    state = huggingface_dinov2_to_timm(state)
    if "reg_token" not in state:
        return state
    positions = state["pos_embed"]
    return state | {"cls_token": state["cls_token"] + positions[:, :1], "pos_embed": positions[:, 1:]}


def to_published(model: PublishedModel, form: Form) -> State:
    """The model's weights under published names, on the CPU. Raises UserError where they have no place there."""
    if (form == "pdiscoformer") != isinstance(model, PDiscoFormer):
        raise UserError(f"--export: {form} is not the form of a {type(model).__name__}")
    if model.model_config.parts.logit_scale != 1:
        raise UserError("--export: the published code has no model.parts.logit_scale; train with 1 to export")
    state = model.state_dict()
    vits = _backbones(model)
    found: State = {}
    for prefix, own, heads in _stages(form):
        stage = {name.removeprefix(own): t for name, t in state.items() if name.startswith(own)}
        backbone = {name.removeprefix("backbone."): t for name, t in stage.items() if name.startswith("backbone.")}
        found |= {prefix + name: t for name, t in _published_backbone(backbone, vits[own[:-1]], form).items()}
        for name, ours in heads.items():
            if ours in stage and (name != "modulation") == (stage[ours].ndim != 3):
                found[prefix + name] = stage[ours][:, :, None, None] if name == PROTOTYPES else stage[ours]
    if form != "pdiscoformer":
        found[_KEY_MASK] = torch.ones(1, vits["stage_2"].num_prefix_tokens)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}


def _published_backbone(state: State, vit: VisionTransformer, form: Form) -> State:
    if missing := [name for name in (PATCHES, POSITIONS) if name not in state]:
        raise UserError(f"--export: the published models are plain ViTs; this backbone has no {missing[0]}")
    rows, columns = grid_of(vit)
    return timm_to_huggingface_dinov2(state, rows * columns) if form == "ifam-hf" else state
