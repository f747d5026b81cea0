"""`hf/NAME`: folders of `save_pretrained`, their image processor's preprocessing, and names that cannot be loaded."""

import json
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
from common.errors import UserError
from explain import __main__ as cli
from explain import explain
from explain.huggingface import HuggingFaceViT
from explain.huggingface_loading import data_config
from explain.loading import load_any
from tests.explain.test_huggingface import SHAPE, SIZES

transformers: Any = pytest.importorskip("transformers")

NAMES = {0: "landbird", 1: "waterbird"}
PROCESSORS = {
    "squash": ("ViTImageProcessorPil", {"size": {"height": 40, "width": 32}, "image_mean": [0.5] * 3}),
    "squash and crop": (
        "ViTImageProcessorPil",
        {"size": {"height": 40, "width": 40}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}},
    ),
    "crop": (
        "CLIPImageProcessorPil",
        {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}, "resample": 3},
    ),
    "all of it": ("CLIPImageProcessorPil", {"size": {"shortest_edge": 32}, "crop_size": 32, "do_normalize": False}),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saved models: a ViT and a DINOv2 with two classes, a CLIP for image and text, a ViT for masked images, ..."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    two: dict[str, Any] = {**SIZES, "id2label": NAMES}
    clip = {"vision_config": {**SIZES, "projection_dim": 12}, "text_config": SHAPE, "projection_dim": 12}
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    models = {
        "vit": transformers.ViTForImageClassification(transformers.ViTConfig(**two)),
        "dinov2": transformers.Dinov2ForImageClassification(transformers.Dinov2Config(**two)).to(torch.bfloat16),
        "clip": transformers.CLIPModel(transformers.CLIPConfig(**clip)),
        "masked": transformers.ViTForMaskedImageModeling(transformers.ViTConfig(**SIZES, encoder_stride=8)),
        "swin": transformers.SwinModel(transformers.SwinConfig(image_size=32, embed_dim=8, depths=[1], num_heads=[1])),
    }
    for name, model in models.items():
        model.save_pretrained(root / name)
        if name != "masked":
            processor.save_pretrained(root / name)
    transformers.ViTModel(transformers.ViTConfig(**SIZES)).save_pretrained(root / "headless")
    processor.save_pretrained(root / "headless")
    config = json.loads((root / "headless" / "config.json").read_text())
    config |= {"architectures": ["ViTForImageClassification"]}
    (root / "headless" / "config.json").write_text(json.dumps(config))
    return root


def photo(folder: Path, size: tuple[int, int] = (60, 90)) -> Path:
    smooth = np.random.default_rng(0).integers(0, 255, (6, 9, 3), dtype=np.uint8)
    Image.fromarray(smooth).resize(size[::-1], Image.Resampling.BICUBIC).save(folder / "photo.png")
    return folder / "photo.png"


@pytest.mark.parametrize("name", PROCESSORS)
def test_preprocessing_is_the_image_processors(name: str, tmp_path: Path) -> None:
    kind, settings = PROCESSORS[name]
    processor = getattr(transformers, kind)(**settings)
    config = data_config(processor, "x")
    pixels = np.asarray(Image.open(photo(tmp_path)))
    wanted = processor(Image.fromarray(pixels), return_tensors="pt").pixel_values[0]
    from timm.data import create_transform

    found = create_transform(**config)(Image.fromarray(pixels))
    assert config["input_size"] == (3, *wanted.shape[1:])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_sides_are_kept_through_timms_fraction() -> None:
    for edge in range(224, 520):
        processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": edge}, crop_size=224)
        assert int(224 / data_config(processor, "x")["crop_pct"]) == edge


def test_preprocessing_that_cannot_be_reproduced() -> None:
    square = {"height": 32, "width": 32}
    for settings, why in (
        ({"size": {"shortest_edge": 32}}, "keeps the proportions"),
        ({"size": square, "do_resize": False}, "does not resize"),
        ({"size": square, "rescale_factor": 1 / 127.5}, "does not scale by 1/255"),
        ({"size": {"longest_edge": 32, "shortest_edge": 20}}, "a size of another kind"),
        ({"size": {"height": 48, "width": 40}, "do_center_crop": True, "crop_size": square}, "different fractions"),
    ):
        with pytest.raises(UserError, match=f"hf/x: its image processor .*{why}"):
            data_config(transformers.ViTImageProcessorPil(**settings), "x")


def test_command_line(folders: Path, tmp_path: Path, capsys: Any) -> None:
    file, out, maps = photo(tmp_path), tmp_path / "out.png", tmp_path / "maps.npy"
    flags = [str(file), f"--model=hf/{folders / 'vit'}", "--method", "agcam", f"--out={out}"]
    cli.main([*flags, "--target", "waterbird", f"--save-maps={maps}"])
    printed = capsys.readouterr()
    assert printed.out.startswith(("landbird  0.", "waterbird  0.")) and printed.err == "" and out.is_file()
    assert "input: resized to 32 x 32 (bilinear); 32 x 32 pixels; mean 0.5 0.5 0.5, std 0.5 0.5 0.5" in printed.out
    model = transformers.ViTForImageClassification.from_pretrained(folders / "vit")
    pixels = load_any(f"hf/{folders / 'vit'}").preprocess(np.asarray(Image.open(file)))
    np.testing.assert_allclose(np.load(maps)[0], explain(model, pixels[None], "agcam", "waterbird"), rtol=1e-4)


def test_evaluation(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    data = ("--data.synthetic.test_images", "4", "--data.workers", "0")
    arguments = [f"--model=hf/{folders / 'dinov2'}", "--method", "rollout", "--metrics", "pointing", *data]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments, "--out", str(tmp_path / "out")])
    evaluate.main()
    assert "4 images, 1 methods" in capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["model"].endswith("dinov2") and "pointing/mask/hit" in results["rows"][0]
    report = (tmp_path / "out" / "report.html").read_text()
    assert "evaluation: squash" in report and "interpolation: bilinear" in report


@pytest.mark.parametrize(("name", "kind"), [("clip", "CLIPVisionModelWithProjection"), ("masked", "ViTModel")])
def test_the_vit_inside_another_model(name: str, kind: str, folders: Path, tmp_path: Path) -> None:
    if name == "masked":
        transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folders / name)
    found = load_any(f"hf/{folders / name}")
    assert type(found.model.model) is getattr(transformers, kind) and not found.has_classes
    whole = {"clip": "CLIPModel", "masked": "ViTForMaskedImageModeling"}[name]
    state = getattr(transformers, whole).from_pretrained(folders / name).state_dict()
    prefix = "vit." if name == "masked" else ""
    for key, weight in found.model.state_dict().items():
        if "position_ids" not in key:
            torch.testing.assert_close(weight, state[prefix + key.removeprefix("model.")])


def test_weights_of_every_precision_and_random_ones(folders: Path, tmp_path: Path) -> None:
    assert next(load_any(f"hf/{folders / 'dinov2'}").model.parameters()).dtype == torch.float32
    assert not load_any(f"hf/{folders / 'dinov2'}").multi_label
    config = json.loads((folders / "dinov2" / "config.json").read_text())
    text = json.dumps(config | {"problem_type": "multi_label_classification"})
    for file in (folders / "dinov2").iterdir():
        (tmp_path / file.name).write_bytes(text.encode() if file.name == "config.json" else file.read_bytes())
    assert load_any(f"hf/{tmp_path}").multi_label
    drawn = load_any(f"hf/{folders / 'clip'}", "none")
    assert isinstance(drawn.model, HuggingFaceViT) and drawn.class_names is None
    assert load_any(f"hf/{folders / 'dinov2'}", "hub", (48, 64)).size == (48, 64)


def test_what_cannot_be_loaded_is_one_line(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "no_processor").mkdir()
    for file in (folders / "vit").iterdir():
        if file.name != "preprocessor_config.json":
            (tmp_path / "no_processor" / file.name).write_bytes(file.read_bytes())
    cases = {
        "nobody/no-such-model": "transformers cannot load 'nobody/no-such-model'",
        str(tmp_path): "transformers cannot load",
        str(folders / "headless"): r"the weights of hf/.* lack classifier\.bias and 1 other",
        str(folders / "swin"): "is a SwinModel; give a model for image classification, or a ViT: clip,",
        str(tmp_path / "no_processor"): "transformers cannot load",
    }
    for name, why in cases.items():
        with pytest.raises(UserError, match=f"^--model: .*{why}") as error:
            load_any(f"hf/{name}")
        assert "\n" not in str(error.value)
    (tmp_path / "w.pt").write_bytes(b"")
    torch.save({}, tmp_path / "w.pt")
    with pytest.raises(UserError, match="--weights: hf/NAME has its own weights"):
        load_any(f"hf/{folders / 'vit'}", str(tmp_path / "w.pt"))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="needs the package transformers"):
        load_any(f"hf/{folders / 'vit'}")
