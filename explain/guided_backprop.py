"""Guided backpropagation.

Springenberg, Dosovitskiy, Brox and Riedmiller, "Striving for Simplicity: The All Convolutional Net", ICLR Workshop
2015. The backward pass of an activation f with input x and arriving gradient g is

    f'(x) max(g, 0) [x > 0]        map = sum over channels of |dy/dx|

The paper has ReLU only, where f' is 1. GELU, SiLU and other activations that go through 0 keep their own derivative.
Gates (sigmoid, tanh, softmax) are no such activations: gradients pass them as they are.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import activations
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from common.errors import UserError
from explain.explained_model import ExplainedModel
from explain.gradients import PixelExplainer, image_gradient
from explain.types import METHODS

FUNCTIONS = (
    *(F.gelu, F.relu, F.hardtanh, F.silu, F.hardswish, F.leaky_relu, F.elu, F.celu, F.selu, F.prelu, F.mish),
    *(torch.relu, torch.relu_, Tensor.relu, Tensor.relu_),
)
MODULES = (
    *(nn.GELU, nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.PReLU, nn.Mish),
    *(activations.GELU, activations.GELUTanh, activations.PReLU),
)
"""The activation modules that call one of FUNCTIONS."""
GATES = (
    *(nn.Sigmoid, nn.Hardsigmoid, nn.Tanh, nn.Softmax, nn.Softmax2d, nn.MultiheadAttention),
    *(activations.Sigmoid, activations.Tanh),
)
"""What torch and timm define among their activations, and gradients pass as they are."""

ACTIVATIONS = ("torch.nn.modules.activation", "timm.layers.activations", "transformers.activations")
"""Python modules that define activations."""


@METHODS.register("guided_backprop")
@dataclass(frozen=True)
class GuidedBackprop(PixelExplainer):
    """Gradients that pass through activations only where they and the activation's input are positive."""

    def check(self, explained: ExplainedModel) -> None:
        """Raise UserError naming the first activation without a guided form."""
        for name, part in explained.network.named_modules():
            is_activation = type(part).__module__.startswith(ACTIVATIONS)
            if is_activation and not isinstance(part, (*MODULES, *GATES)) and not _calls_known(part):
                kind = type(part).__name__
                raise UserError(f"{name}: guided backpropagation has no rule for {kind}; choose another method")

    def maps(self, explained: ExplainedModel, images: Tensor, targets: Tensor | None) -> Tensor:
        """See `Explainer.maps`; [B, H, W]."""
        with _GuidedActivations():
            return image_gradient(explained, images, targets).abs().sum(1)


def _calls_known(part: nn.Module) -> bool:
    """Whether the activation is one of Hugging Face's that call one of FUNCTIONS."""
    act = getattr(part, "act", None)
    return type(part).__name__ == "SiLUActivation" or getattr(act, "func", act) in FUNCTIONS  # GELUTanh: a partial


class _GuidedActivations(TorchFunctionMode):
    """Puts a hook on the output of every activation that filters the arriving gradient.

    The hooks do nothing after the mode is left: a derivative of the map goes back through the plain forward pass.
    """

    def __init__(self) -> None:
        super().__init__()
        self.active = True

    def __exit__(self, *error: Any) -> None:
        self.active = False
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in FUNCTIONS:
            return func(*args, **(kwargs or {}))
        positive = args[0] > 0  # before the call, which may work in place
        out = func(*args, **(kwargs or {}))
        if out.requires_grad:
            out.register_hook(lambda gradient: gradient.clamp(min=0) * positive if self.active else None)
        return out
