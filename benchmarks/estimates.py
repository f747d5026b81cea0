"""Hours of the published runs on one H100, estimated from FLOPs. Nothing here is measured.

    python -m benchmarks.estimates

A forward pass of one image through a ViT of depth L and width D with N tokens takes 24 N D^2 L FLOPs in matrix products
and 4 N^2 D L in attention. Stage 1 sees the image and its second view; its backward pass costs as much as its forward
pass where only tokens are trained (weights frozen), and nothing where these are frozen too. A network that is trained
whole costs three forward passes. The part head, losses and data loading are left out.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch

from benchmarks.harness import table
from engine.run.command_line import load_config
from engine.run.config import RunConfig

PRECISIONS = {"fp32": (67.0, 0.6), "TF32": (495.0, 0.3), "bf16": (989.0, 0.35)}
"""Peak of an H100 SXM in TFLOP/s (dense), and the fraction of it that is assumed to be reached."""
KEEP = 0.3
"""Assumed fraction of the patches that stage 2 sees."""
IMAGES = {
    "cub": 5395, "waterbirds": 4795, "waterbirds_fast": 4795, "waterbirds_decoupled": 4795, "waterbirds_dinov3": 4795,
    "siim_acr": 10_000, "imagenet1k": 1_153_000, "cub_pdiscoformer": 5395,
}  # fmt: skip
"""Config -> training images of an epoch; of SIIM-ACR about."""


@dataclass(frozen=True)
class ViTSize:
    """What the FLOPs of a ViT depend on."""

    width: int
    depth: int
    prefix: int
    patches: int

    def forward(self, keep: float = 1.0) -> float:
        """FLOPs of one image of which a fraction of the patches is kept."""
        tokens = self.prefix + keep * self.patches
        return self.depth * (24 * tokens * self.width**2 + 4 * tokens**2 * self.width)


def size_of(backbone: str, image_size: tuple[int, int]) -> ViTSize:
    """Of one of timm's ViTs for images of (height, width) pixels; built without memory."""
    with torch.device("meta"):
        vit: Any = timm.create_model(backbone, pretrained=False, img_size=image_size)
    patches = vit.patch_embed.grid_size[0] * vit.patch_embed.grid_size[1]
    return ViTSize(vit.embed_dim, len(vit.blocks), vit.num_prefix_tokens, patches)


def step_flops(config: RunConfig) -> float:
    """FLOPs of a training step per image."""
    size, name = size_of(config.model.backbone, config.data.size_hw), config.model.name
    if name in ("vit", "decoupled", "late_masking"):
        return 3 * size.forward(KEEP if name == "decoupled" else 1.0)
    backward = not (config.optim.freeze_stage_1 and config.optim.freeze_stage_1_tokens)
    second_views = config.loss.equivariance.images
    views = 1 + (second_views / config.data.max_batch_per_device if second_views else 1)
    stage_1 = views * (1 + backward) * size.forward()
    return stage_1 + (3 * size.forward(KEEP) if name == "two_stage" else 0.0)


def hours(flops: float, precision: str) -> float:
    """Hours of `flops` on one GPU."""
    peak, fraction = PRECISIONS[precision]
    return flops / (peak * 1e12 * fraction) / 3600


def estimates() -> list[dict[str, object]]:
    """One row per config."""
    rows: list[dict[str, object]] = []
    for name, images in IMAGES.items():
        config = load_config(Path("configs") / f"{name}.yaml", {})
        flops = step_flops(config)
        epoch = {f"{precision}, h": hours(flops * images, precision) for precision in PRECISIONS}
        total = {key: f"{value * config.train.epochs:.1f}" for key, value in epoch.items()}
        run = {"config": name, "images": f"{images:,}", "epochs": config.train.epochs}
        rows.append(run | {"TFLOP an image": f"{flops / 1e12:.2f}"} | total)
    return rows


if __name__ == "__main__":
    print(table(estimates()))
