"""Patch tokens of a frozen backbone, stored on disk by the content of the image.

With its backbone and tokens frozen, stage 1's backbone is a fixed function of its input. Training then computes the
tokens of each input (an image and its flip, say) once, and every later epoch, run and process with the same weights
reads them. Views that are drawn anew, such as those of the equivariance term, are not stored.
"""

import hashlib
from pathlib import Path

import timm
import torch
from torch import Tensor

from common.array_cache import ArrayCache
from common.errors import UserError
from models.backbone import patch_tokens
from models.transformer import ViT, describe


class TokenCache:
    """A folder with one file per network input.

    Inputs are computed one at a time, so that stored tokens do not depend on the batch in which an input came first.
    """

    def __init__(self, folder: Path, max_bytes: float) -> None:
        """When the files in `folder` reach `max_bytes`, no more are written."""
        self.files = ArrayCache("train.token_cache", folder, max_bytes)
        self._versions: tuple[int, ...] = ()
        self._weights = b""

    def tokens(self, vit: ViT, images: Tensor) -> Tensor:
        """`patch_tokens(vit, images)` [B, N, D] without a graph, read where stored."""
        if vit.training and describe(vit).draws_positions:
            raise UserError("train.token_cache: this stage 1 draws its rotary positions anew in every training step")
        state = self._state(vit, images)
        pixels = images.detach().cpu().numpy()  # of all images, with one wait for the device
        keys = [hashlib.blake2b(each.tobytes(), key=state, digest_size=20).hexdigest() for each in pixels]
        return torch.stack([self._tokens(vit, image, key) for image, key in zip(images, keys, strict=True)])

    def _tokens(self, vit: ViT, image: Tensor, key: str) -> Tensor:
        stored = self.files.read(key)
        if stored is not None:
            return torch.from_numpy(stored).to(image.device)
        with torch.no_grad():
            tokens = patch_tokens(vit, image[None])[0].float()
        self.files.write(key, tokens.cpu().numpy())
        return tokens

    def _state(self, vit: ViT, images: Tensor) -> bytes:
        """A hash of all that the tokens depend on besides the image."""
        tensors = vit.state_dict()
        versions = tuple(value for t in tensors.values() for value in (t.data_ptr(), t._version))
        if versions != self._versions:
            digest = hashlib.blake2b(repr(vit).encode())
            digest.update(repr([getattr(module, "num_heads", None) for module in vit.modules()]).encode())
            rope = describe(vit).embed(torch.zeros_like(images[:1])).rope  # its settings are in no weight
            tensors = tensors if rope is None else tensors | {"rope": rope}
            for name, tensor in tensors.items():
                digest.update(f"{name}{tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
            self._versions, self._weights = versions, digest.digest()
        device = images.device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else images.dtype
        products = torch.get_float32_matmul_precision()
        where = f"{device} {autocast} {products} {tuple(images.shape[1:])} {torch.__version__} {timm.__version__}"
        return hashlib.blake2b(self._weights + where.encode(), digest_size=32).digest()
