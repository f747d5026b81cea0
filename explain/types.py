"""What every explanation method offers."""

from abc import ABC, abstractmethod
from dataclasses import fields
from typing import ClassVar, Literal, get_args, get_origin

from torch import Tensor

from common.errors import UserError
from common.registry import Registry
from explain.explained_model import ExplainedModel, require_attention


class Explainer(ABC):
    """One method with its options. Subclasses are frozen dataclasses whose fields are the options.

    Maps are unnormalised, float32 (float64 for a float64 model), on the images' device; the map of a batch is the map
    of each image alone.
    """

    class_specific: ClassVar[bool]
    """Whether the map depends on the target class."""
    keeps_graph: ClassVar[bool] = False
    """Whether maps of an explained model with `graph` can be differentiated in turn."""

    @property
    def resolution(self) -> Literal["patch", "pixel"]:
        """Maps are [B, h, w] on the patch grid, or [B, H, W]."""
        return "patch"

    def __post_init__(self) -> None:
        """Raise UserError for a value that an option does not know; every dataclass calls this."""
        for option in fields(self):  # type: ignore[arg-type]  # all methods are dataclasses
            known = get_args(option.type) if get_origin(option.type) is Literal else ()
            if known and (value := getattr(self, option.name)) not in known:
                flag = option.name.replace("_", "-")
                raise UserError(f"--{flag}: {value!r}; known: {', '.join(filter(None, known))}")

    def check(self, explained: ExplainedModel) -> None:
        """Raise UserError, before any work, where this method cannot explain the model. Here: needs attention."""
        require_attention(explained)

    @abstractmethod
    def maps(self, explained: ExplainedModel, images: Tensor, targets: Tensor | None) -> Tensor:
        """images [B, 3, H, W], targets [B] int64 or None (predicted class) -> maps [B, h, w].

        Runs inside `explainable`: eval mode, gradients on, fused attention on.
        """


METHODS: Registry[type[Explainer]] = Registry("explanation method (--method)")
