"""Convert checkpoints published with iFAM and PDiscoFormer to our models, and back."""

from dataclasses import replace

import torch
from timm.models.vision_transformer import VisionTransformer

from common.errors import UserError
from models.backbone import grid_of
from models.config import ModelConfig
from models.pdiscoformer import PDiscoFormer
from models.transformer import ViT
from models.two_stage import TwoStageModel
from models.weights.checkpoints import check_fit, fit_positions, load_into
from models.weights.huggingface import State, huggingface_dinov2_to_timm, timm_to_huggingface_dinov2
from models.weights.published_layout import CLASSIFIER, PATCHES, POSITIONS, PROTOTYPES, Format, Layout, read_layout

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


def _stages(format: Format) -> list[tuple[str, str, dict[str, str]]]:
    """(published prefix, our prefix, published name -> our name of weights outside the backbone) of each stage."""
    if format == "pdiscoformer":
        return [("", "stage_1.", _STAGE_1)]
    return [("stage_1.", "stage_1.", _STAGE_1), ("stage_2.", "stage_2.", _STAGE_2)]


def load_published(
    state: State,
    source: str,
    config: ModelConfig,
    backbone: str | None = None,
    image_size: tuple[int, int] | None = None,
) -> tuple[PublishedModel, Layout]:
    """Our model in eval mode with the weights of a published state dict, and the layout read from that state dict.

    `config`: settings that weights do not show (temperature, empty masks, ...). `backbone`: timm's name, needed if the
    shapes fit several. `image_size`: (height, width) in pixels; position embeddings are resampled if it differs from
    the checkpoint's. Raises UserError naming missing, unexpected and misshapen tensors.
    """
    layout = read_layout(state, source)
    size, name = image_size or layout.image_size, backbone or layout.backbone
    if size is None:
        raise UserError(f"--image-size: {source} has {layout.num_patches} patches, not a square; give height and width")
    if name is None:
        raise UserError(f"--backbone: give timm's name of the backbone; {source} holds {layout}")
    one_stage = layout.format == "pdiscoformer"
    config = replace(
        config,
        name="pdiscoformer" if one_stage else "two_stage",
        backbone=name,
        stage_1_backbone="",
        stage_1_weights="",
        parts=replace(config.parts, num_parts=layout.num_parts, modulation=layout.modulation),
    )
    model = (PDiscoFormer if one_stage else TwoStageModel)(config, layout.num_classes, size)
    _check_names(state, to_published(model, layout.format), source)
    load_into(model, _with_positions(to_ours(state, layout.format), model), source)
    return model.eval(), layout


def _check_names(state: State, expected: State, source: str) -> None:
    """Raise UserError, in the names of the file, for wrong names or shapes.

    Weights without effect may be missing, and position embeddings may have any length: they are resampled later.
    """
    inert = {name for name in expected if name == _KEY_MASK or name.endswith("embeddings.mask_token")}
    tables = {name for name in expected if name.endswith((POSITIONS, "position_embeddings"))} & state.keys()
    resampled = {
        name for name in tables if state[name].ndim == 3 and state[name].shape[::2] == expected[name].shape[::2]
    }
    check_fit(expected, state | {name: expected[name] for name in resampled | inert}, source)


def _with_positions(state: State, model: PublishedModel) -> State:
    """The state with position embeddings resampled to the model's grid."""
    for name, vit in _backbones(model).items():
        start = f"{name}.backbone."
        backbone = {key.removeprefix(start): t for key, t in state.items() if key.startswith(start)}
        state = state | {f"{start}{key}": t for key, t in fit_positions(backbone, vit).items()}
    return state


def _backbones(model: PublishedModel) -> dict[str, ViT]:
    stages = {"stage_1": model.stage_1.backbone}
    return stages | ({"stage_2": model.stage_2.backbone} if isinstance(model, TwoStageModel) else {})


def to_ours(state: State, format: Format) -> State:
    """Rename published weights to our names; position embeddings are not resampled."""
    ours: State = {}
    for prefix, own, heads in _stages(format):
        stage = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
        stage.pop(_KEY_MASK.removeprefix(prefix), None)
        for name in heads.keys() & stage.keys():
            tensor = stage.pop(name)
            ours[own + heads[name]] = tensor.flatten(1) if name == PROTOTYPES else tensor
        backbone = _timm_backbone(stage) if format == "ifam-hf" else stage
        ours |= {f"{own}backbone.{name}": tensor for name, tensor in backbone.items()}
    return ours


def _timm_backbone(state: State) -> State:
    """Hugging Face's names to timm's. With registers, timm adds the class token's position to the token itself."""
    state = huggingface_dinov2_to_timm(state)
    if "reg_token" not in state:
        return state
    positions = state["pos_embed"]
    return state | {"cls_token": state["cls_token"] + positions[:, :1], "pos_embed": positions[:, 1:]}


def to_published(model: PublishedModel, format: Format) -> State:
    """The model's weights under published names, on the CPU. Raises UserError if `format` has no place for them."""
    if (format == "pdiscoformer") != isinstance(model, PDiscoFormer):
        raise UserError(f"--export: {format} is not a format for a {type(model).__name__}")
    config = model.model_config
    published_only = {
        "parts.logit_scale": config.parts.logit_scale == 1,
        "parts.margin": config.parts.margin == 0,
        "mask_resolution=pixel": config.mask_resolution == "patch",
        "stage_1_image_size": not config.stage_1_image_size,
    }
    for key, published_value in published_only.items():
        if not published_value:
            raise UserError(f"--export: the published code has no model.{key}; train with its default to export")
    state = model.state_dict()
    vits = _backbones(model)
    published: State = {}
    for prefix, own, heads in _stages(format):
        stage = {name.removeprefix(own): t for name, t in state.items() if name.startswith(own)}
        backbone = {name.removeprefix("backbone."): t for name, t in stage.items() if name.startswith("backbone.")}
        published |= {prefix + name: t for name, t in _published_backbone(backbone, vits[own[:-1]], format).items()}
        for name, ours in heads.items():
            # "modulation" and "modulation.weight" share our name: the original product has 3 dimensions, the norm 2.
            if ours in stage and (name != "modulation") == (stage[ours].ndim != 3):
                published[prefix + name] = stage[ours][:, :, None, None] if name == PROTOTYPES else stage[ours]
    if format != "pdiscoformer":
        published[_KEY_MASK] = torch.ones(1, vits["stage_2"].num_prefix_tokens)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in published.items()}


def _published_backbone(state: State, vit: ViT, format: Format) -> State:
    if not isinstance(vit, VisionTransformer):
        raise UserError(f"--export: the published models are plain ViTs; this backbone is an {type(vit).__name__}")
    if missing := [name for name in (PATCHES, POSITIONS) if name not in state]:
        raise UserError(f"--export: the published models are plain ViTs; this backbone has no {missing[0]}")
    rows, columns = grid_of(vit)
    return timm_to_huggingface_dinov2(state, rows * columns) if format == "ifam-hf" else state
