"""`.half()` and `.bfloat16()` models predict as in float32."""

from typing import Any

import pytest
import torch

from models import ModelConfig, build_model

CASES: dict[str, dict[str, Any]] = {
    "two stages": {"name": "two_stage"},
    "pixel mask": {"mask_resolution": "pixel"},
    "soft mask": {"mask_kind": "soft"},
    "small stage 1": {"stage_1_image_size": 32},
    "gathered": {"stage_2_path": "gathered"},
    "dense": {"stage_2_path": "dense"},
    "pdiscoformer": {"name": "pdiscoformer"},
    "attention": {"selector": "attention"},
    "ep": {"name": "vit", "pooling": "ep"},
    "aim": {"name": "vit", "pooling": "aim"},
    "cnn": {"name": "cnn", "backbone": "test_resnet"},
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("keys", CASES.values(), ids=CASES)
@torch.no_grad()
def test_predictions(keys: dict[str, Any], dtype: torch.dtype) -> None:
    config = ModelConfig(**{"backbone": "vit_nano_patch8", "weights": "none"} | keys)
    model = build_model(config, num_classes=4, image_size=(64, 64), seed=1).eval()
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    exact, rounded = model(images), model.to(dtype)(images.to(dtype))
    comparable = torch.ones(4, dtype=torch.bool)
    if exact.mask is not None:
        mask, other = (out.mask if out.pixels is None else out.pixels for out in (exact, rounded))
        assert (mask == other).float().mean() > 0.9 and 0 < mask.float().mean() < 1
        # Rounding may move a patch that is next to the threshold, and with it the prediction.
        comparable = (mask == other).flatten(1).all(1)
    error = (rounded.logits.float() - exact.logits)[comparable].abs().max() / exact.logits.abs().max()
    assert error < 10 * torch.finfo(dtype).eps


def test_the_part_head_stays_in_float32() -> None:
    """Its logits are small differences between large numbers: rounded parameters would move the mask."""
    model = build_model(ModelConfig(backbone="vit_nano_patch8", weights="none"), 4, (64, 64))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, tensor in model.half().state_dict().items():
        kept = name.startswith("stage_1.parts.")
        assert tensor.dtype == (torch.float32 if kept else torch.float16)
        assert not kept or torch.equal(tensor, before[name])
    assert {tensor.dtype for tensor in model.double().state_dict().values()} == {torch.float64}
