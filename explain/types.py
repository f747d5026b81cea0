"""The base class of all explanation methods, and their registry."""

from abc import ABC, abstractmethod
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

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
    def drops_hidden(self) -> bool:
        """Whether stage 2 may run without its hidden patches (`without_hidden`), because the map is the same."""
        return False

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
        """Raise UserError for a value of another type than the option's. Overrides call it first."""
        for option, kind in self.options().items():
            known = get_args(kind) if get_origin(kind) is Literal else ()
            if not _fits(value := getattr(self, option), kind):
                hint = f"known: {', '.join(filter(None, known))}" if known else f"give {describe(kind)}"
                raise UserError(f"--{option.replace('_', '-')}: {value!r}; {hint}")

    def check(self, explained: ExplainedModel) -> None:
        """Raise UserError if this method cannot explain the model. By default: if its attention cannot be read."""
        require_attention(explained)

    @abstractmethod
    def maps(self, explained: ExplainedModel, images: Tensor, targets: Tensor | None) -> Tensor:
        """images [B, 3, H, W], targets [B] int64 (None: predicted class) -> maps [B, h, w], or [B, H, W] at pixels.

        Called inside `explainable`: eval mode, gradients enabled, fused attention on.
        """


def check_method(method: Explainer, explained: ExplainedModel, scored: bool = False) -> None:
    """Raise UserError if the method cannot explain the model. `scored`: without classifier, targets are given."""
    if method.class_specific and not explained.has_classes and not scored:
        what = "this ViT has no classifier (num_classes=0 or no pooling): there is no class to explain"
        give = "give targets (a feature's index, a direction or an image; --target, --target-image)"
        raise UserError(f"{what}; {give}, or choose attention_flow, raw_attention or rollout")
    method.check(explained)


def describe(kind: Any) -> str:
    """The values of a type as a user writes them: "mean | max | min", "float"."""
    if get_origin(kind) is Literal:
        return " | ".join(str(value) for value in get_args(kind) if value != "")
    if kind is bool:
        return "true | false"
    if get_origin(kind) in (Union, UnionType):
        return " | ".join(describe(member) for member in get_args(kind) if member is not type(None))
    return str(getattr(kind, "__name__", kind))


def _fits(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return any(type(value) is type(known) and value == known for known in get_args(kind))
    if get_origin(kind) in (Union, UnionType):
        return any(_fits(value, member) for member in get_args(kind))
    kind = get_origin(kind) or kind
    if kind is Any or not isinstance(kind, type):
        return True
    if kind is float:  # an int is a float; true is neither
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and isinstance(value, bool) <= (kind is bool)


METHODS: Registry[type[Explainer]] = Registry("explanation method (--method)")
