"""Guided backpropagation (Springenberg et al. 2015), with the activations of transformers beside ReLU."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from timm.layers.activations import GELU, GELUTanh
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from common.errors import UserError
from explain.explained_model import ExplainedModel
from explain.gradients import PixelExplainer, image_gradient
from explain.types import METHODS

FUNCTIONS = (F.gelu, F.relu, F.silu)
MODULES = (nn.GELU, nn.ReLU, nn.SiLU, GELU, GELUTanh)
"""The activations that call one of FUNCTIONS."""


@METHODS.register("guided_backprop")
@dataclass(frozen=True)
class GuidedBackprop(PixelExplainer):
    """sum over channels of |dy/dx|, where an activation lets a gradient pass only if it and the input are positive.

    What passes is multiplied by the activation's own derivative, which is 1 for ReLU as published.
    """

    def check(self, explained: ExplainedModel) -> None:
        """Raise UserError naming the first activation of another kind."""
        for name, part in explained.network.named_modules():
            home = type(part).__module__
            is_activation = home.startswith(("torch.nn.modules.activation", "timm.layers.activations"))
            if is_activation and not isinstance(part, (*MODULES, nn.MultiheadAttention)):
                raise UserError(f"{name}: guided backpropagation has no rule for {type(part).__name__}, choose another")

    def maps(self, explained: ExplainedModel, images: Tensor, targets: Tensor | None) -> Tensor:
        """See `Explainer.maps`; [B, H, W]."""
        with _Guided():
            return image_gradient(explained, images, targets).abs().sum(1)


class _Guided(TorchFunctionMode):
    """Gates the gradient that arrives at every activation; the gate lives on the graph and goes with it.

    It opens on leaving: where a map is differentiated in turn, that gradient is the plain one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.closed = True

    def __exit__(self, *error: Any) -> None:
        """Leave, and open the gates."""
        self.closed = False
        super().__exit__(*error)

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        if func not in FUNCTIONS:
            return func(*args, **(kwargs or {}))
        positive = args[0] > 0  # before the call, which may work in place
        out = func(*args, **(kwargs or {}))
        if out.requires_grad:
            out.register_hook(lambda gradient: gradient.clamp(min=0) * positive if self.closed else None)
        return out
