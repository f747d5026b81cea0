"""The counterparts a user would install, where they are there: captum and pytorch-grad-cam, each used as it says.

    pip install captum grad-cam

Each is (model, images [B, 3, H, W]) -> maps [B, H, W] of the predicted classes.
"""

from importlib.util import find_spec

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

MODULES = {"captum": "captum", "grad-cam": "pytorch_grad_cam"}
"""Package -> what is imported."""


def is_installed(package: str) -> bool:
    """Whether the package can be imported."""
    return find_spec(MODULES[package]) is not None


def predicted(vit: VisionTransformer, images: Tensor) -> Tensor:
    """[B]: the class that captum must be told."""
    with torch.no_grad():
        return vit(images).argmax(1)


def integrated_gradients(vit: VisionTransformer, images: Tensor, steps: int) -> Tensor:
    """captum, all points of all images in one forward."""
    from captum.attr import IntegratedGradients

    found = IntegratedGradients(vit).attribute(images, target=predicted(vit, images), n_steps=steps)
    return found.sum(1)


def input_x_gradient(vit: VisionTransformer, images: Tensor) -> Tensor:
    """captum."""
    from captum.attr import InputXGradient

    found = InputXGradient(vit).attribute(images.clone().requires_grad_(), target=predicted(vit, images))
    return found.sum(1).detach()


def guided_backprop(vit: VisionTransformer, images: Tensor) -> Tensor:
    """captum; it guides ReLU alone, so that of a ViT it returns the plain gradient."""
    from captum.attr import GuidedBackprop

    found = GuidedBackprop(vit).attribute(images.clone().requires_grad_(), target=predicted(vit, images))
    return found.abs().sum(1)


def gradcam(vit: VisionTransformer, images: Tensor) -> Tensor:
    """pytorch-grad-cam on the tokens behind the last block's first norm; enlarged and stretched to [0, 1]."""
    from pytorch_grad_cam import GradCAM

    side = vit.patch_embed.grid_size[0]

    def spatial(tokens: Tensor) -> Tensor:
        return tokens[:, vit.num_prefix_tokens :].transpose(1, 2).unflatten(2, (side, side))

    with GradCAM(vit, [vit.blocks[-1].norm1], reshape_transform=spatial) as cam:
        found = torch.from_numpy(cam(input_tensor=images, targets=None))
    vit.zero_grad()
    return found
