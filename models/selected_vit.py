"""The two-stage model with stage 1 replaced, in training too, by a fixed source of masks (`model.selector`)."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.files import parse_json, read_file
from models import selectors
from models.backbone import create_backbone, grid_of, load_backbone_weights, require_class_token
from models.baseline import PlainViT
from models.config import ModelConfig
from models.given_mask import select_given
from models.interface import ImageClassifier, NetworkView, Stage
from models.masked_vit import MaskedViT, check_masked_vit
from models.outputs import ClassifierOutput
from models.selection import Selection
from models.transformer import ViT, describe, is_vit
from models.weights.checkpoints import load_into, read_state

WEIGHTS = "model.selector_weights"
GIVEN = ("given", "given_background")
OF_BACKBONE = {
    "attention": selectors.class_attention,
    "rollout": selectors.attention_rollout,
    "pca": selectors.first_component,
}


class SelectedViT(ImageClassifier):
    """Stage 2, with its new norm, on the patches that a frozen selector chooses.

    With `model.selector` given or given_background it is called with the true masks, as the models in
    `models/given_mask.py`. The selector is always in eval mode, without gradients, and part of every checkpoint.
    """

    parameter_rules = "two_stage"
    reads_selection = True

    def __init__(self, model_config: ModelConfig, num_classes: int, image_size: tuple[int, int]) -> None:
        """Random weights; `load_pretrained_backbones` loads those of the selector and of stage 2."""
        super().__init__()
        self.model_config = config = model_config
        self.image_size = image_size
        if config.selector in GIVEN:
            self.needs_mask, self.not_explainable = True, "its predictions depend on a given mask"
        self.selector = _frozen_network(config, num_classes, image_size).requires_grad_(False).eval()
        self.stage_2 = MaskedViT(
            create_backbone(config.backbone, image_size, config.drop_path), num_classes, config.stage_2_path
        )
        check_masked_vit(config, self.stage_2)
        _check(config, self.selector, grid_of(self.stage_2.backbone))

    def load_pretrained_backbones(self) -> None:
        """Load the pretrained weights of the selector and of stage 2's backbone. Raises UserError."""
        config = self.model_config
        load_backbone_weights(self.stage_2.backbone, config.backbone, config.weights)
        if is_vit(self.selector):
            name = config.stage_1_backbone or config.backbone
            load_backbone_weights(self.selector, name, config.stage_1_weights or config.weights, "stage_1")
        elif isinstance(self.selector, PlainViT):
            load_plain_vit(self.selector, config.selector_weights)

    def train(self, mode: bool = True) -> "SelectedViT":
        """As usual, except that the selector stays in eval mode."""
        super().train(mode)
        self.selector.eval()
        return self

    @torch.no_grad()
    def selection(self, images: Tensor, mask: Tensor | None = None) -> Selection:
        """The selector's choice for images [B, 3, H, W]; `mask` [B, H, W] bool is for given masks alone."""
        config, grid = self.model_config, self.patch_grid
        if self.needs_mask:
            assert mask is not None, f"model.selector={config.selector} needs masks"
            return select_given(mask if config.selector == "given" else ~mask, grid, config)
        size = self.image_size if config.mask_resolution == "pixel" else None
        return selectors.select_largest(self._scores(images), grid, config.selector_keep, size)

    def _scores(self, images: Tensor) -> Tensor:
        name = self.model_config.selector
        if name == "random":
            return selectors.random_scores(images, self.patch_grid[0] * self.patch_grid[1])
        if name == "gradcam":
            return selectors.grad_cam(cast(PlainViT, self.selector), images)
        return OF_BACKBONE[name](cast(ViT, self.selector), images)

    def predict(self, images: Tensor, selection: Selection) -> Tensor:
        """Class logits [B, C] for any Selection."""
        return cast(Tensor, self.stage_2(images, selection))

    def forward(
        self, images: Tensor, mask: Tensor | None = None, generator: torch.Generator | None = None
    ) -> ClassifierOutput:
        """Images [B, 3, H, W] -> ClassifierOutput; `mask` [B, H, W] bool if `needs_mask`. `generator` is unused."""
        selection = self.selection(images, mask)
        return ClassifierOutput(self.predict(images, selection), selection.mask, selection.empty, selection.pixels)

    def network_view(self, stage: Stage = 2, selection: Selection | None = None) -> NetworkView:
        """Stage 2 with `selection` held fixed. There is no stage 1."""
        assert selection is not None, "stage 2 is explained for a given selection"
        return NetworkView(self.network, lambda images: self.predict(images, selection), self.stage_2.readout)

    @property
    def network(self) -> nn.Module:
        """Stage 2's backbone."""
        return self.stage_2.backbone

    @property
    def stages(self) -> tuple[nn.Module, ...]:
        """Stage 2."""
        return (self.stage_2,)


def _frozen_network(config: ModelConfig, num_classes: int, image_size: tuple[int, int]) -> nn.Module:
    """The network that the selector reads, with random weights; without parameters if it reads none."""
    name = config.stage_1_backbone or config.backbone
    if config.selector == "gradcam":
        return PlainViT(replace(config, name="vit", backbone=name, selector="parts"), num_classes, image_size)
    return create_backbone(name, image_size) if config.selector in OF_BACKBONE else nn.Identity()


def _check(config: ModelConfig, network: nn.Module, grid: tuple[int, int]) -> None:
    """Raise UserError for keys that a fixed selector cannot honour."""
    key = f"model.selector={config.selector}"
    if (config.mask_kind, config.mask_gradient) != ("hard", "detached"):
        raise UserError(f"{key} gives a fixed mask: it needs model.mask_kind=hard and model.mask_gradient=detached")
    if config.selector == "gradcam" and not config.selector_weights:
        raise UserError(f"{key} needs model.selector_weights: a run folder or checkpoint of a run with model.name=vit")
    if config.selector != "gradcam" and config.selector_weights:
        raise UserError(f"model.selector_weights is for model.selector=gradcam; {key} reads model.weights at most")
    vit = network.backbone if isinstance(network, PlainViT) else network
    if not is_vit(vit):
        return
    if grid_of(vit) != grid:
        raise UserError(f"model.stage_1_backbone: its patch grid {grid_of(vit)} is not that of stage 2, {grid}")
    if config.selector in ("attention", "rollout"):
        require_class_token(vit, config.stage_1_backbone or config.backbone, key)
    if config.selector != "pca" and not describe(vit).is_plain:
        kind = type(vit.blocks[0]).__name__
        raise UserError(f"{key} needs a ViT with timm's plain blocks; its backbone has {kind}")


def load_plain_vit(model: PlainViT, source: str) -> None:
    """Load a trained plain ViT from a run folder (its best weights) or a checkpoint in one.

    Of a checkpoint, the moving average is used if there is one. Raises UserError if there is no such file, no
    config.json beside it, or the run has another backbone, pooling, image size or number of classes.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        path = (path if (path / "model.safetensors").is_file() else path / "best") / "model.safetensors"
    if not path.is_file():
        raise UserError(f"{WEIGHTS}: no file {path}; give a run folder or a checkpoint of a run with model.name=vit")
    state, saved, config = read_state(path), _saved_config(path), model.model_config
    wanted = {f"model.{key}": getattr(config, key) for key in ("name", "backbone", "pooling")}
    wanted |= {"image_size": list(model.input_size), "num_classes": model.num_outputs}
    for key, value in wanted.items():
        if saved.get(key) != value:
            raise UserError(f"{WEIGHTS}: {path} has {key}={saved.get(key)}; this config needs {value}")
    for part in ("ema/", "model/"):  # a checkpoint of the whole run
        if any(name.startswith(part) for name in state):
            state = {name.removeprefix(part): tensor for name, tensor in state.items() if name.startswith(part)}
            break
    load_into(model, state, f"{WEIGHTS}={path}")


def _saved_config(weights: Path) -> dict[str, Any]:
    """config.json of the model whose weights these are: beside them, or in the run's folder `best`; keys model.*."""
    for file in (weights.parent / "config.json", weights.parent.parent / "best" / "config.json"):
        if file.is_file():
            try:
                content: dict[str, Any] = parse_json(read_file(file))
                return content | {f"model.{key}": value for key, value in content["model_config"].items()}
            except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
                raise UserError(f"{WEIGHTS}: {file} is damaged; give another run") from None
    raise UserError(f"{WEIGHTS}: no config.json beside {weights}; give a run folder of train.py")
