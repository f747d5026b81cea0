"""Networks of timm and torchvision that are not one of `explain.vits`: Grad-CAM and methods at pixels, or one line."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg
from torch import Tensor, nn

from common.errors import UserError
from explain import METHODS, explain
from explain import __main__ as cli
from explain.features import last_stage
from explain.loading import Preprocessing, load_any
from tests.models.small import shaken

ATTENTION = ("raw_attention", "rollout", "attention_flow", "grad_rollout", "agcam", "lrp")
PIXELS = ("gradient", "input_x_gradient")
TIMM: dict[str, tuple[str, dict[str, Any], int, tuple[int, int]]] = {
    "ResNet": ("resnet10t", {}, 64, (2, 2)),
    "ConvNeXt": ("test_convnext", {}, 64, (2, 2)),
    "SwinTransformer": (
        "swin_tiny_patch4_window7_224",
        dict(embed_dim=16, depths=(1, 1), num_heads=(1, 2)),
        56,
        (7, 7),
    ),
    "MaxxVit": ("maxvit_rmlp_pico_rw_256", {"embed_dim": (32, 32), "depths": (1, 1)}, 64, (8, 8)),
    "PyramidVisionTransformerV2": ("pvt_v2_b0", {"depths": (1, 1, 1, 1)}, 64, (2, 2)),
    "MultiScaleVit": ("mvitv2_tiny", {}, 32, (4, 4)),
}
"""Class: name, settings, image size, and the grid of its last features."""


def tiny(kind: str) -> tuple[nn.Module, Tensor, tuple[int, int]]:
    name, settings, side, grid = TIMM[kind]
    sized = {} if kind in ("ResNet", "ConvNeXt", "PyramidVisionTransformerV2") else {"img_size": side}
    torch.manual_seed(0)
    if kind == "MultiScaleVit":  # timm.create_model cannot make a smaller one
        shape = MultiScaleVitCfg(depths=(1, 1), embed_dim=(16, 32), num_heads=(1, 2))
        made: nn.Module = MultiScaleVit(shape, num_classes=5, **sized)
    else:
        made = timm.create_model(name, num_classes=5, **settings, **sized)
    model = shaken(made, gain=1.0).double().eval()
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return model, x, grid


@pytest.mark.parametrize("kind", TIMM)
def test_other_networks_of_timm(kind: str) -> None:
    """Grad-CAM from timm's last features, whose order `forward_intermediates` gives; refusals in one line."""
    model, x, grid = tiny(kind)
    assert type(model).__name__ == kind
    targets = torch.tensor([4, 1])
    maps = explain(model, x, "gradcam", targets, relu=False)
    assert maps.shape == (2, *grid)
    kept: list[Tensor] = []
    module = model.get_submodule(last_stage(model, x))
    with module.register_forward_hook(lambda _, __, out: kept.append(out[0] if isinstance(out, tuple) else out)):
        score = model(x).gather(1, targets[:, None]).sum()
    (gradient,) = torch.autograd.grad(score, kept)
    a = model.forward_intermediates(x, indices=1, norm=False, intermediates_only=True)[-1]  # type: ignore[operator]
    channels = 1 if kept[0].shape[1] == a.shape[1] and kept[0].ndim == 4 else -1
    weight = gradient.mean([d for d in range(1, gradient.ndim) if d != channels % gradient.ndim])  # [B, D]
    torch.testing.assert_close(maps, (a * weight[:, :, None, None]).sum(1).detach())
    for method in PIXELS:
        assert explain(model, x, method, targets).abs().amax((1, 2)).min() > 0
    for method in ATTENTION:
        with pytest.raises(UserError, match=f"^--method: a {kind} is not a ViT whose attention") as error:
            explain(model, x, method, targets)
        assert "\n" not in str(error.value)


def test_tokens_in_another_order_than_the_image_are_refused() -> None:
    torch.manual_seed(0)
    model = timm.create_model("hiera_tiny_224", img_size=64, embed_dim=8, stages=(1, 1, 1, 1), num_classes=5).eval()
    x = torch.randn(2, 3, 64, 64)
    with pytest.raises(UserError, match="neither the patch tokens nor a feature map"):
        explain(model, x, "gradcam", module="blocks.0")
    assert explain(model, x, "gradient").shape == (2, 64, 64)


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("resnet18", "layer4"),
        ("squeezenet1_1", "classifier"),
        ("swin_t", "permute"),
        ("densenet121", "features"),  # followed by an activation in place
    ],
)
def test_networks_of_torchvision(name: str, stage: str) -> None:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, num_classes=5).eval()
    x = torch.randn(1, 3, 64, 64)
    assert last_stage(model, x).startswith(stage)
    assert explain(model, x, "gradcam").isfinite().all()
    with pytest.raises(UserError, match="is not a ViT whose attention"):
        explain(model, x, "rollout")


def test_tokens_of_torchvisions_vit_are_no_feature_map() -> None:
    model = torchvision.models.VisionTransformer(32, 8, 1, 2, 16, 32, num_classes=5).eval()
    x = torch.randn(1, 3, 32, 32)
    with pytest.raises(UserError, match=r"gradcam finds no feature map after encoder\.layers\.encoder_layer_0"):
        explain(model, x, "gradcam")
    assert explain(model, x, "gradient").shape == (1, 32, 32)


def test_a_size_that_a_network_does_not_take() -> None:
    model, x, _ = tiny("SwinTransformer")
    with pytest.raises(UserError, match="images: 48 x 48 pixels; this model takes 56 x 56"):
        explain(model, x[:, :, :48, :48], "gradient")
    halo = timm.create_model("halonet26t", num_classes=5).eval()
    with pytest.raises(UserError, match="^images: 48 x 48 pixels: the model refuses"):
        explain(halo, x[:, :, :48, :48].float(), "gradient")


def test_a_stage_whose_patches_the_class_score_does_not_read() -> None:
    """ConViT's class score reads the class token alone after its last block."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 8, "depth": 3, "local_up_to_layer": 1}
    model = timm.create_model("convit_tiny", num_heads=2, num_classes=5, **settings).eval()
    with pytest.raises(UserError, match=r"the class score does not read the patches from blocks\.2; choose one before"):
        explain(model, torch.randn(1, 3, 32, 32), "gradcam")
    assert explain(model, torch.randn(1, 3, 32, 32), "gradcam", module="blocks.1", relu=False).shape == (1, 4, 4)


def test_a_stage_that_returns_features_and_a_class_token() -> None:
    """PiT's class score reads the token alone after the last stage."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"img_size": 64, "base_dims": (8, 8), "depth": (1, 1), "heads": (1, 2)}
    model = timm.create_model("pit_ti_224", num_classes=5, **shape).eval()
    x = torch.randn(1, 3, 64, 64)
    with pytest.raises(UserError, match=r"the class score does not read transformers\.1, or has no derivative; choose"):
        explain(model, x, "gradcam")
    kept: list[Tensor] = []
    with model.transformers[0].register_forward_hook(lambda _, __, out: kept.append(out[0])):
        score = model(x)[0, 2]
    a, (gradient,) = kept[0], torch.autograd.grad(score, kept)
    wanted = (a * gradient.mean((2, 3), keepdim=True)).sum(1).detach()
    torch.testing.assert_close(explain(model, x, "gradcam", 2, module="transformers.0", relu=False), wanted)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 255, (80, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("source", ["timm/test_resnet", "timm/test_convnext", "torchvision/mobilenet_v3_small"])
def test_command_line(source: str, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = photo.with_name("out.png")
    common = [str(photo), f"--model={source}", "--weights=none", "--size", "64", "64", f"--out={out}"]
    cli.main([*common, "--method", "gradcam", "gradient", "--target", "7"])
    assert "input: resized to cover" in capsys.readouterr().out and out.is_file()
    with pytest.raises(SystemExit) as exited:
        cli.main([*common, "--method", "rollout"])
    assert exited.value.code == 2
    assert "is not a ViT whose attention between all patches can be read" in capsys.readouterr().err


def test_command_line_without_classifier(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """DINOv3 has no classifier in timm: methods without class, of single heads too."""
    out = photo.with_name("dino.png")
    common = [str(photo), "--model=timm/vit_small_patch16_dinov3", "--weights=none", "--size", "32", "32"]
    cli.main([*common, f"--out={out}", "--method", "all", "--head", "2"])
    printed = capsys.readouterr()
    assert printed.out.startswith("no classifier  ") and out.is_file()
    assert "agcam is left out: this ViT has no classifier" in printed.err
    with pytest.raises(SystemExit):
        cli.main([*common, f"--out={out}", "--method", "agcam"])
    assert "there is no class to explain" in capsys.readouterr().err
    other = photo.with_name("other.png")
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (80, 90, 3), dtype=np.uint8)).save(other)
    maps = photo.with_name("maps.npy")
    flags = ["--method", "gradient", f"--target-image={other}", f"--out={out}", f"--save-maps={maps}"]
    torch.manual_seed(0)
    cli.main([*common, *flags])
    torch.manual_seed(0)
    dino = load_any("timm/vit_small_patch16_dinov3", "none", (32, 32))
    pixels, target = (dino.preprocess(np.asarray(Image.open(file)))[None] for file in (photo, other))
    wanted = explain(dino.model, pixels, "gradient", target)
    np.testing.assert_allclose(np.load(maps)[0, 0], wanted[0], rtol=1e-4, atol=1e-5 * float(wanted.max()))
    capsys.readouterr()
    for given, why in {
        "--target-image nowhere.png": "nowhere.png",
        f"--target-image {other} --out {other} --overwrite": "other.png is one of the images",
    }.items():  # before the model is made
        with pytest.raises(SystemExit):
            cli.main([*common, "--method", "gradient", *given.split()])
        assert why in capsys.readouterr().err


def test_targets_on_the_command_line() -> None:
    headless: Any = SimpleNamespace(has_classes=False)

    def targets(classifier: Any, *flags: str) -> list[int]:
        return cli.targets_of(cli.parse_args(["photo.png", *flags]), classifier, ["ant", "bee"])

    assert targets(headless, "--target", "3", "7") == [3, 7] and targets(headless) == []
    for flags, why in (
        (["--target", "cat"], "--target: 'cat'; this model has no classifier, so give the number of a feature"),
        (["--target", "3", "--target-image", "bird.png"], "leave one out"),
    ):
        with pytest.raises(UserError, match=why):
            targets(headless, *flags)
    classifier: Any = SimpleNamespace(has_classes=True)
    assert targets(classifier, "--target", "bee") == [1]
    with pytest.raises(UserError, match="--target-image: this model has a classifier"):
        targets(classifier, "--target-image", "bird.png")


def test_torchvisions_preprocessing_is_that_of_its_weights() -> None:
    weights = torchvision.models.get_model_weights("resnet18").DEFAULT
    pixels = np.random.default_rng(1).integers(0, 255, (300, 400, 3), dtype=np.uint8)
    found = load_any("torchvision/resnet18", "none").preprocess(pixels)
    wanted = weights.transforms()(Image.fromarray(pixels))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    squashed = load_any("torchvision/resnet18", "none", (64, 96), Preprocessing("squash"))
    assert squashed.preprocess(pixels).shape == (3, 64, 96) and squashed.num_classes == 1000


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("resnet18", "write timm/NAME, torchvision/NAME or hf/NAME"),
        ("hub/resnet18", "write timm/NAME, torchvision/NAME or hf/NAME"),
        ("torchvision/resnet19", "no classifier 'resnet19'; it has resnet"),
        ("timm/no_such_model", "no_such_model"),
    ],
)
def test_unknown_sources(source: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^--model: .*{message}"):
        load_any(source, "none")


def test_all_methods_are_tested_here_or_refused() -> None:
    others = {"gradcam", "guided_backprop", "integrated_gradients", "inherent", *PIXELS}
    assert set(METHODS) == others | set(ATTENTION)
