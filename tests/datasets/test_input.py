"""The input is what the backbone's weights were trained with, unless the data set or the user says otherwise."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models import get_pretrained_cfg

from commands.start_summary import input_lines
from common.errors import UserError
from datasets import DataConfig, RawSample
from datasets.transforms import EvalTransform
from engine.run.command_line import parse_config
from engine.run.config import RunConfig, save_config
from engine.run.folder import run_config
from models.backbone import own_input

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5,) * 3, (0.5,) * 3)
WEIGHTS = {
    "vit_base_patch14_dinov2.lvd142m": (IMAGENET, "center_crop", "bicubic", 1.0),
    "vit_base_patch16_224.augreg_in1k": (HALF, "center_crop", "bicubic", 0.9),
    "vit_base_patch16_224": (HALF, "center_crop", "bicubic", 0.9),
    "vit_base_patch16_clip_224.openai": (CLIP, "center_crop", "bicubic", 0.9),
    "vit_base_patch16_clip_384.openai_ft_in12k_in1k": (CLIP, "squash", "bicubic", 0.95),
    "resnet50.tv_in1k": (IMAGENET, "center_crop", "bilinear", 0.875),
    "vit_nano_patch8": (IMAGENET, "center_crop", "bilinear", 1.0),  # no weights in timm
}


def config_of(backbone: str, *flags: str) -> RunConfig:
    return parse_config([f"--model.backbone={backbone}", "--data.name=imagenet", *flags])


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_backbones_own(name: str) -> None:
    data = config_of(name).data
    assert (data.normalisation, data.evaluation, data.interpolation, data.crop) == WEIGHTS[name]
    assert (data.mean, data.std) == WEIGHTS[name][0]  # resolved, so that they are saved with the run


@pytest.mark.parametrize("name", [name for name in WEIGHTS if name != "vit_nano_patch8"])
def test_the_same_pixels_as_with_timm(name: str) -> None:
    config = config_of(name, "--data.image_size=64").data
    image = np.random.default_rng(0).integers(0, 256, (90, 130, 3), np.uint8)
    cfg = resolve_data_config(pretrained_cfg=get_pretrained_cfg(name).to_dict(), args={"input_size": (3, 64, 64)})
    expected = create_transform(**cfg)(Image.fromarray(image))
    got = EvalTransform(config)(RawSample(image, 0, "x")).image
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


def test_what_is_given_wins() -> None:
    given = [
        "--data.mean=[0.1,0.2,0.3]",
        "--data.crop=0.8",
        "--data.interpolation=bilinear",
        "--data.evaluation=squash",
    ]
    data = config_of("vit_base_patch16_224", *given).data
    assert (data.normalisation, data.crop) == (((0.1, 0.2, 0.3), HALF[1]), 0.8)
    assert (data.interpolation, data.evaluation) == ("bilinear", "squash")
    assert config_of("vit_base_patch16_224", "--data.evaluation=squash").data.crop == 1
    published = config_of("resnet50.tv_in1k", "--data.evaluation=imagenet").data
    assert (published.interpolation, published.crop) == ("bicubic", 0.875)
    with pytest.raises(UserError, match="data.crop: must be a number from 0 to 1, got 1.5"):
        config_of("vit_base_patch16_224", "--data.crop=1.5")


@pytest.mark.parametrize("name", ["waterbirds", "cub", "metashift", "flowers102", "voc2012", "synthetic", "svhn"])
def test_published_views_stay_but_the_normalisation_is_the_backbones(name: str) -> None:
    data = config_of("vit_base_patch16_clip_224.openai", f"--data.name={name}").data
    assert (data.evaluation, data.interpolation, data.crop, data.normalisation) == (
        "center_crop",
        "bilinear",
        1.0,
        CLIP,
    )


def test_an_open_config_means_imagenet() -> None:
    assert DataConfig().normalisation == IMAGENET
    image = np.full((8, 8, 3), 255, np.uint8)
    pixels = EvalTransform(DataConfig(image_size=8))(RawSample(image, 0, "x")).image[:, 0, 0]
    torch.testing.assert_close(pixels, (1 - torch.tensor(IMAGENET[0])) / torch.tensor(IMAGENET[1]))


def test_a_run_of_an_earlier_version_keeps_its_view(tmp_path: Path) -> None:
    (tmp_path / "best").mkdir()
    file = tmp_path / "config.yaml"
    for evaluation, view in {"center_crop": ("bilinear", 1.0), "imagenet": ("bicubic", 0.875)}.items():
        saved = {"name": "imagenet", "evaluation": evaluation, "mean": [*IMAGENET[0]], "std": [*IMAGENET[1]]}
        file.write_text(yaml.safe_dump({"data": saved, "model": {"backbone": "vit_base_patch16_224"}}))
        data = parse_config([f"--config={file}"]).data
        assert (data.interpolation, data.crop, data.normalisation) == (*view, IMAGENET)


def test_another_evaluation_of_a_run_does_not_keep_its_crop(tmp_path: Path) -> None:
    save_config(config_of("vit_base_patch16_224"), tmp_path / "config.yaml")
    views = {"imagenet": ("bicubic", 0.875), "squash": ("bicubic", 1.0), "center_crop": ("bicubic", 0.9)}
    for evaluation, view in views.items():
        data = run_config(tmp_path, [f"--data.evaluation={evaluation}"]).data
        assert (data.evaluation, data.interpolation, data.crop) == (evaluation, *view)
    assert run_config(tmp_path, ["--data.evaluation", "imagenet", "--data.crop=0.8"]).data.crop == 0.8
    assert run_config(tmp_path, ["--data.name=waterbirds"]).data.crop == 0.9  # the input stays that of the training


def test_what_is_said_at_the_start() -> None:
    (line,) = input_lines(config_of("vit_base_patch16_224"))
    assert line == (
        "input: 224 x 224 pixels, mean 0.5 0.5 0.5, std 0.5 0.5 0.5 (those of vit_base_patch16_224); "
        "evaluation: center_crop, bicubic, crop 0.9"
    )
    (other,) = input_lines(config_of("vit_base_patch16_224", "--data.mean=[0,0,0]"))
    assert "mean 0 0 0" in other and "(not those of vit_base_patch16_224)" in other
    _, file = input_lines(config_of("vit_base_patch16_224", "--model.weights=dino.pth"))
    assert file.startswith("model.weights=dino.pth: ") and file.endswith("set data.mean and data.std")
    _, stage_1 = input_lines(config_of("vit_base_patch16_224", "--model.stage_1_backbone=resnet50.tv_in1k"))
    assert "resnet50.tv_in1k has mean 0.485 0.456 0.406" in stage_1
    assert own_input("vit_nano_patch8") == own_input("no such thing") == {}
