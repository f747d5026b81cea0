"""Vision models of Hugging Face's `transformers`, which return a `ModelOutput`, as modules that return one tensor.

`transformers` is never imported here: whoever passes one of its models has imported it.
"""

from collections.abc import Iterator, Sequence
from typing import Any, cast

from torch import Tensor, nn

from common.errors import UserError
from models.interface import Readout

READS: dict[str, Readout] = {
    "ViTModel": "class_token", "ViTForImageClassification": "class_token",
    "Dinov2Model": "class_token", "Dinov2ForImageClassification": "all",
    "Dinov2WithRegistersModel": "class_token", "Dinov2WithRegistersForImageClassification": "all",
    "DINOv3ViTModel": "class_token",
    "SiglipVisionModel": "patches", "SiglipForImageClassification": "patches",
    "CLIPVisionModel": "class_token", "CLIPVisionModelWithProjection": "class_token",
    "CLIPForImageClassification": "patches",
}  # fmt: skip
"""The ViTs whose attention methods can read, and which tokens their logits or features are computed from."""
ANY_SIZE = ("Dinov2Model", "Dinov2WithRegistersModel", "DINOv3ViTModel")
"""ViTs that resample or compute their positions for the size of the image."""
WITHOUT_CLASS_TOKEN = ("SiglipVisionModel",)
_BLOCK = "GradientCheckpointingLayer"
"""The class that all blocks in `transformers` inherit from."""


class HuggingFaceModel(nn.Module):
    """Images [B, 3, H, W] -> logits [B, C].

    Its modules and weights are those of the model inside, with the names that they have there.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, images: Tensor) -> Tensor:
        """The model's `logits`. Raises UserError if it has none."""
        logits = getattr(self._output(images), "logits", None)
        if not isinstance(logits, Tensor):
            kind = type(self.model).__name__
            raise UserError(f"a {kind} returns no logits; give a model for image classification, or a ViT")
        return logits

    def named_modules(self, memo: Any = None, prefix: str = "", remove_duplicate: bool = True) -> Iterator[Any]:
        """Those of the model inside, without this one."""
        yield from self.model.named_modules(memo, prefix, remove_duplicate)

    @property
    def class_names(self) -> list[str] | None:
        """The names in its config; None if there are none but LABEL_0, LABEL_1, ..."""
        by_index = getattr(cast(Any, self.model).config, "id2label", None) or {}
        names = [str(by_index.get(i, "")) for i in range(len(by_index))]
        return names if any(name != f"LABEL_{i}" for i, name in enumerate(names)) else None

    @property
    def multi_label(self) -> bool:
        """Whether an image may show several classes, by its config."""
        return getattr(cast(Any, self.model).config, "problem_type", None) == "multi_label_classification"

    def _output(self, images: Tensor) -> Any:
        return self.model(pixel_values=images, return_dict=True)


class PatchConvolution:
    """The patch embedding of a ViT here, under the names that timm's has."""

    def __init__(self, convolution: nn.Conv2d, image_size: tuple[int, int]) -> None:
        self.convolution = convolution
        self.patch_size = cast("tuple[int, int]", tuple(convolution.stride))
        self.grid_size = self.dynamic_feat_size(image_size)

    def dynamic_feat_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The patch grid (h, w) of images of this size; what is left over at the right and bottom is not read."""
        return size[0] // self.patch_size[0], size[1] // self.patch_size[1]

    def modules(self) -> Iterator[nn.Module]:
        """The convolution."""
        return self.convolution.modules()


class HuggingFaceViT(HuggingFaceModel):
    """A ViT in `READS`, under the names that timm's ViTs have. Without classifier, it returns features [B, D].

    Features: the class token after the final norm (ViT, DINOv2, DINOv3), the embedding after the projection (CLIP, or
    before it if there is none), or what SigLIP's attention pooling returns (without it, the mean of the tokens).
    """

    def __init__(self, model: nn.Module, tower: nn.Module) -> None:
        """`tower`: the ViT itself, inside `model` or the same."""
        super().__init__(model)
        self.reads: Readout = READS[type(model).__name__]
        object.__setattr__(self, "tower", tower)  # not a second child
        self.kind = type(tower).__name__
        self.blocks = _blocks(tower)
        config: Any = cast(Any, tower).config
        convolution = next(part for part in tower.modules() if isinstance(part, nn.Conv2d))
        size = config.image_size
        self.image_size: tuple[int, int] = (size, size) if isinstance(size, int) else tuple(size)
        self.patch_embed = PatchConvolution(convolution, self.image_size)
        self.cls_token = None if self.kind in WITHOUT_CLASS_TOKEN else True
        self.num_prefix_tokens = int(self.cls_token is not None) + int(getattr(config, "num_register_tokens", 0))
        self.dynamic_img_size = self.kind in ANY_SIZE
        self.global_pool = "token" if self.reads == "class_token" else "avg"
        self.pool_include_prefix = self.reads == "all"

    @property
    def head(self) -> nn.Module:
        """The classifier; an Identity if there is none."""
        return cast(nn.Module, getattr(self.model, "classifier", nn.Identity()))

    @property
    def attn_pool(self) -> nn.Module | None:
        """SigLIP's pooling by attention, if the features are read from it."""
        return cast("nn.Module | None", None if self._classifies else getattr(self.tower, "head", None))

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """(height, width) of the only images that the ViT takes, pixels; None if it takes several sizes."""
        return None if self.dynamic_img_size else self.image_size

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, C], or features [B, D]."""
        output = self._output(images)
        if self._classifies:
            return cast(Tensor, output.logits)
        if getattr(output, "image_embeds", None) is not None:
            return cast(Tensor, output.image_embeds)
        if self.kind.startswith(("CLIP", "Siglip")) and output.pooler_output is not None:
            return cast(Tensor, output.pooler_output)
        tokens_BND: Tensor = output.last_hidden_state
        return tokens_BND[:, 0] if self.cls_token else tokens_BND.mean(1)

    @property
    def _classifies(self) -> bool:
        return hasattr(self.model, "classifier")


def is_huggingface(model: nn.Module) -> bool:
    """Whether it is a model of `transformers`, or a subclass."""
    return any(kind.__name__ == "PreTrainedModel" and _is_theirs(kind) for kind in type(model).__mro__)


def adapted(model: nn.Module) -> nn.Module:
    """A model of `transformers` as a `HuggingFaceViT`, or, if it is none of `READS`, as a `HuggingFaceModel`.

    Other modules stay as they are. Raises UserError for a model that reads more than images.
    """
    if not is_huggingface(model):
        return model
    if getattr(model, "main_input_name", "") != "pixel_values":
        kind, inner = type(model).__name__, getattr(model, "vision_model", None)
        hint = "give its vision_model" if inner is not None else "give a vision model"
        raise UserError(f"cannot explain a {kind}: it does not read images alone; {hint}")
    as_published = type(model).__name__ in READS and _is_unchanged(model)
    towers = [part for part in model.modules() if type(part).__name__ in READS and hasattr(part, "embeddings")]
    if not as_published or not towers or not _is_unchanged(towers[0]) or not _blocks(towers[0]):
        return HuggingFaceModel(model)
    return HuggingFaceViT(model, towers[0])


def _blocks(tower: nn.Module) -> Sequence[nn.Module]:
    return [part for part in tower.modules() if any(kind.__name__ == _BLOCK for kind in type(part).__mro__)]


def _is_unchanged(model: nn.Module) -> bool:
    """Whether the model computes as its class in `transformers` does, so that it is known what its head reads."""
    return _is_theirs(type(model)) and "forward" not in vars(model)


def _is_theirs(kind: type) -> bool:
    return kind.__module__.startswith("transformers.")
