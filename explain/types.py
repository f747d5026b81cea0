"""The base class of all explanation methods, and their registry."""

from abc import ABC, abstractmethod
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from torch import Tensor

from common.errors import UserError
from common.registry import Registry
from explain.explained_model import ExplainedModel, require_attention


class Explainer(ABC):
    """An explanation method with its options. Subclasses are frozen dataclasses; their fields are the options.

    Maps are unnormalised, float32 (float64 for a float64 model), and on the images' device. The map of an image does
    not depend on the other images of its batch.
    """

    class_specific: ClassVar[bool] = True
    """Whether the map depends on the target class."""
    keeps_graph: ClassVar[bool] = False
    """Whether maps can be differentiated if `ExplainedModel.graph` is set."""

    @property
    def resolution(self) -> Literal["patch", "pixel"]:
        """Whether maps are [B, h, w] on the patch grid or [B, H, W]."""
        return "patch"

    @classmethod
    def options(cls) -> dict[str, Any]:
        """The types of the options, by name."""
        types = get_type_hints(cls)
        return {option.name: types[option.name] for option in fields(cls)} if is_dataclass(cls) else {}

    def __post_init__(self) -> None:
        """Raise UserError for a value that is not among an option's choices. Subclasses that override this call it."""
        for option, kind in self.options().items():
            known = get_args(kind) if get_origin(kind) is Literal else ()
            if known and (value := getattr(self, option)) not in known:
                raise UserError(f"--{option.replace('_', '-')}: {value!r}; known: {', '.join(filter(None, known))}")

    def check(self, explained: ExplainedModel) -> None:
        """Raise UserError if this method cannot explain the model. By default: if its attention cannot be read."""
        require_attention(explained)

    @abstractmethod
    def maps(self, explained: ExplainedModel, images: Tensor, targets: Tensor | None) -> Tensor:
        """images [B, 3, H, W], targets [B] int64 (None: predicted class) -> maps [B, h, w], or [B, H, W] at pixels.

        Called inside `explainable`: eval mode, gradients enabled, fused attention on.
        """


METHODS: Registry[type[Explainer]] = Registry("explanation method (--method)")
