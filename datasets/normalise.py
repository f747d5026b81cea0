"""From pixel values of 0..255 to the numbers that a network gets."""

import torch
from torch import Tensor

from common.transfer import on_device
from datasets.config import Triple

Normalisation = tuple[Triple, Triple]
"""Mean and standard deviation of each colour channel, pixel values in [0, 1]."""


def constants_of(normalisation: Normalisation, device: torch.device | None = None) -> Tensor:
    """[3, 3, 1, 1] float32: 255, mean and standard deviation of each channel, for `normalise`.

    255 too is a tensor: by a Python number CUDA does not divide but multiplies with its rounded reciprocal.
    """
    mean, std = normalisation
    constants = ((255.0,) * 3, mean, std)
    return on_device(constants, device or torch.device("cpu"), torch.float32)[..., None, None]


def normalise(pixels: Tensor, constants: Tensor) -> Tensor:
    """[..., 3, H, W] uint8 -> float32, (pixels / 255 - mean) / std, rounded to float32 after each step.

    Equal to the last bit on every device, one image at a time or in a batch. `constants` are on the device of `pixels`.
    Raises TypeError for other types: floats may be in [0, 1] already.
    """
    if pixels.dtype != torch.uint8:
        raise TypeError(f"normalise takes pixels of 0..255 as uint8, not {pixels.dtype}")
    top, mean, std = constants
    return pixels.div(top).sub_(mean).div_(std)
