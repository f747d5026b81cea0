"""Convolutional baselines: timm's pooled features with a new head, and loading of weights."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from common.errors import UserError
from models import build_model
from models.cnn import Cnn
from tests.models.small import config, images

SIZE = (64, 64)


def model_of(name: str = "resnet10t", **changes: str) -> Cnn:
    model = build_model(config(name="cnn", backbone=name, **changes), 5, SIZE)
    assert isinstance(model, Cnn)
    return model.eval()


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto"])
@torch.no_grad()
def test_linear_head_with_bias_on_timms_pooled_features(name: str) -> None:
    model, x = model_of(name), images(2, SIZE)
    pooled = model.backbone.forward_head(model.backbone.forward_features(x), pre_logits=True)
    assert pooled.ndim == 2 and abs(model.head.weight.std() - 0.02) < 2e-3
    torch.testing.assert_close(model(x).logits, pooled @ model.head.weight.T + model.head.bias)
    assert model(x).mask is None


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto"])
def test_weights_from_a_file_with_another_classifier(name: str, tmp_path: Path) -> None:
    source = timm.create_model(name, num_classes=7).state_dict()
    save_file(source, tmp_path / "net.safetensors")
    state = model_of(name, weights=str(tmp_path / "net.safetensors")).backbone.state_dict()
    assert all(torch.equal(tensor, source[key]) for key, tensor in state.items())


def test_saved_and_read_back(tmp_path: Path) -> None:
    model, x = model_of(), images(2, SIZE)
    model.save_pretrained(tmp_path)
    assert torch.equal(Cnn.from_pretrained(tmp_path)(x).logits, model(x).logits)


@pytest.mark.parametrize(
    ("name", "padding", "size"),
    [("resnet10t", "reflect", (32, 32)), ("resnet10t", "reflect", (64, 32)), ("convnext_atto", "zeros", (1, 1))],
)
def test_images_that_are_too_small(name: str, padding: str, size: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=rf"data\.image_size: .* is too small for {name}"):
        build_model(config(name="cnn", backbone=name, padding=padding), 5, size)
    model = build_model(config(name="cnn", backbone=name, padding=padding), 5, SIZE)
    assert model.training and all(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("name", "words"),
    [("resnet9999", "timm has no model 'resnet9999'"), ("vit_nano_patch8", "for a ViT use model.name=vit")],
)
def test_models_other_than_cnns_are_refused(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        model_of(name)
