"""`evaluate.py --model` without --method, and `commands.imagenet9 --model`."""

import json
import sys
from pathlib import Path
from typing import Any

import h5py
import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import save_file

import evaluate
from commands import imagenet9
from datasets import collate, load_split
from engine.run.command_line import parse_config
from explain import explain
from tests.tiny import flags
from tests.trees import imagenet9_tree

KEYS: dict[str, Any] = {
    "data.name": "synthetic", "data.image_size": 64, "data.workers": 0, "data.synthetic.train_images": 8,
    "data.synthetic.val_images": 8, "data.synthetic.test_images": 12, "train.device": "cpu",
}  # fmt: skip


def measured(script: Any, out: Path, *arguments: str) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["script", *arguments, "--out", str(out)])
        script.main()
    assert (out / "report.html").is_file()
    return dict(json.loads((out / "results.json").read_text()))


def test_a_cnn_of_timm(tmp_path: Path) -> None:
    """Its predictions are those of timm's model on images normalised as it wants them."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=2).eval()
    save_file(model.state_dict(), tmp_path / "two.safetensors")
    results = measured(
        evaluate, tmp_path / "out", "--model", "timm/test_resnet", "--weights", str(tmp_path / "two.safetensors"),
        *flags(KEYS),
    )  # fmt: skip
    config = parse_config([*flags(KEYS), "--data.mean=[0.5,0.5,0.5]", "--data.std=[0.5,0.5,0.5]"])
    assert model.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
    split = load_split(config.data, "test", train=False, seed=0)
    batch = collate([split[index] for index in range(len(split))])
    with torch.no_grad():
        logits = model(batch.image)
    table = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert table["predicted"].tolist() == logits.argmax(1).tolist()
    assert results["test/nll"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, batch.label)), rel=1e-4)
    assert {"test/accuracy", "test/worst_group_accuracy", "test/ece", "test/auroc"} <= results.keys()
    assert results["run"] == "timm/test_resnet" and results["checkpoint"].endswith("two.safetensors")


def test_explanations_of_a_cnn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--method all` measures the methods that need no attention, with the maps of `explain`."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=2).eval()
    save_file(model.state_dict(), tmp_path / "two.safetensors")
    keys = KEYS | {"data.synthetic.test_images": 4}
    results = measured(
        evaluate, tmp_path / "out", "--model", "timm/test_resnet", "--weights", str(tmp_path / "two.safetensors"),
        *flags(keys), "--method", "all", "--steps", "2", "--metrics", "pointing", "certificate",
        "--save-maps", str(tmp_path / "maps.h5"),
    )  # fmt: skip
    assert "rollout is left out: --method: a ResNet is not a ViT" in " ".join(capsys.readouterr().out.split())
    rows = {row["row"]: row for row in results["rows"]}
    assert set(rows) == {"gradcam", "gradient", "guided_backprop", "input_x_gradient", "integrated_gradients"}
    assert results["protocol"]["certificate"]["patch_pixels"] == 32
    assert rows["gradcam"]["certificate/keep_ratio"] == 0.25  # one of 2 x 2
    config = parse_config([*flags(keys), "--data.mean=[0.5,0.5,0.5]", "--data.std=[0.5,0.5,0.5]"])
    split = load_split(config.data, "test", train=False, seed=0)
    batch = collate([split[index] for index in range(len(split))])
    maps = explain(model, batch.image, "gradcam", batch.label)
    with h5py.File(tmp_path / "maps.h5") as file:
        stored = torch.from_numpy(file["gradcam/maps/label"][()]).float()
        scale = torch.from_numpy(file["gradcam/scale/label"][()])
    torch.testing.assert_close(stored * scale[:, None, None], maps, rtol=2e-3, atol=1e-6)


def test_imagenet9_of_torchvision(tmp_path: Path) -> None:
    root = imagenet9_tree(tmp_path / "sets")
    results = measured(
        imagenet9, tmp_path / "out", "--model", "torchvision/squeezenet1_1", "--weights", "none", "--data.root",
        str(root), "--data.image_size=64", "--data.workers=0", "--train.device=cpu",
    )  # fmt: skip
    rows = {row["row"]: row["accuracy"] for row in results["rows"]}
    assert results["bg_gap"] == pytest.approx(rows["mixed_same"] - rows["mixed_rand"])
    assert results["run"] == "torchvision/squeezenet1_1"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "torchvision/squeezenet1_1"], "squeezenet1_1 has 1000 classes, data set synthetic has 2"),
        (["--model", "torchvision/squeezenet"], "torchvision has no classifier 'squeezenet'; it has"),
        (["--model", "squeezenet1_1"], "write timm/NAME, torchvision/NAME or hf/NAME"),
        (["--model", "timm/test_resnet", "--leave-one-part-out"], "--leave-one-part-out needs a two-stage --run"),
        (["--run", "nowhere"], "--weights needs --model"),
    ],
)
def test_mistakes(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments, "--weights", "none", *flags(KEYS)])
    with pytest.raises(SystemExit):
        evaluate.main()
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
