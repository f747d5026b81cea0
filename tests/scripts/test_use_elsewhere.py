"""Trained models outside this repository: torch.hub, ONNX, torch.export, the Hugging Face Hub."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import OfflineModeIsEnabled
from torch import Tensor

from commands import export, push_to_hub
from commands.export import INFORMATION, export_model
from common.errors import UserError
from datasets import load_split
from datasets.trained_on import TrainedOn
from models import ModelConfig, PartsConfig, TwoStageModel, build_model
from models.interface import ImageClassifier
from tests.scripts.running import ROOT
from tests.tiny import tiny_config

TRAINED_ON = {
    "name": "squares", "class_names": ["left", "right"], "class_keys": None, "group_names": None, "multi_label": False,
    "image_size": [32, 32], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "evaluation": "squash",
    "interpolation": "bilinear", "crop": 1.0,
}  # fmt: skip


def saved(folder: Path, **keys: Any) -> tuple[Path, ImageClassifier]:
    """A run folder with a random model as its best."""
    config = ModelConfig(**{"backbone": "vit_nano_patch8", "weights": "none"} | keys)
    model = build_model(config, num_classes=2, image_size=(32, 32), seed=7).eval()
    model.remember_data(TRAINED_ON)
    model.save_pretrained(folder / "best")
    return folder, model


ELSEWHERE = """
import sys, torch
import models, common.mine

repository, run, plain = sys.argv[1:]
first, second = (torch.hub.load(repository, "two_stage", run=run, source="local") for _ in range(2))
assert type(first) is type(second) and first.training is False
assert models.OWN and common.mine.OWN, "the caller's packages are still there"
assert not [name for name in sys.modules if name.startswith(("models.", "common.")) and name != "common.mine"]
assert repository not in sys.path
torch.save(first(torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)).logits, "logits.pt")
first.save_pretrained("copy")
for name, source in (("vit", run), ("two_stage", plain), ("two_stage", "no/such folder")):
    try:
        torch.hub.load(repository, name, run=source, source="local")
    except ValueError as error:
        print(error)
"""


@pytest.mark.slow
def test_torch_hub_from_any_folder_beside_own_packages(tmp_path: Path) -> None:
    run, model = saved(tmp_path / "run")
    plain, _ = saved(tmp_path / "plain", name="vit")
    for name in ("models.py", "common/__init__.py", "common/mine.py", "datasets/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("OWN = True\n")
    (tmp_path / "main.py").write_text(ELSEWHERE)
    done = subprocess.run(
        [sys.executable, "main.py", str(ROOT), str(run), str(plain)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    images = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
    assert torch.equal(torch.load(tmp_path / "logits.pt"), model(images).logits)
    assert (tmp_path / "copy" / "model.safetensors").is_file()
    other, wrong, missing = done.stdout.splitlines()[-3:]
    assert other == f"{run} holds a TwoStageModel, not a model of model.name=vit"
    assert wrong == f"{plain} holds a PlainViT, not a model of model.name=two_stage"
    assert missing.startswith("no/such folder: no such folder, and the Hugging Face Hub does not give it (")


def onnx_outputs(file: Path, images: Tensor) -> dict[str, Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(file)
    names = [output.name for output in session.get_outputs()]
    assert json.loads(session.get_modelmeta().custom_metadata_map[INFORMATION])["outputs"] == names
    return dict(zip(names, map(torch.from_numpy, session.run(None, {"images": images.numpy()})), strict=True))


def program_outputs(file: Path, images: Tensor) -> dict[str, Tensor]:
    extra = {INFORMATION: ""}
    program = torch.export.load(file, extra_files=extra).module()
    assert json.loads(extra[INFORMATION])["trained_on"] == TRAINED_ON
    return program(images)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("form", "outputs"), [("onnx", onnx_outputs), ("torch_export", program_outputs)])
def test_export(form: str, outputs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pixel mask has all outputs; weights of 2 GiB are stood in for by a lower limit."""
    monkeypatch.setattr(export, "LARGEST", 0)
    run, model = saved(tmp_path / "run", mask_resolution="pixel")
    file = tmp_path / "exported"
    shapes = "logits [batch, 2], stage_1_logits [batch, 2], mask [batch, 4, 4], pixels [batch, 32, 32], part_maps"
    assert f"-> {shapes} [batch, 9, 4, 4]; largest difference" in export_model(run, form, file)
    (tmp_path / "moved").mkdir()
    for part in tmp_path.glob("exported*"):  # weights beside the file are found by its folder
        part.rename(tmp_path / "moved" / part.name)
    images = 3 * torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(7))
    found, expected = outputs(tmp_path / "moved" / "exported", images), model(images)
    assert list(found) == ["logits", "stage_1_logits", "mask", "pixels", "part_maps"]
    for name, value in found.items():
        torch.testing.assert_close(value, getattr(expected, name), atol=1e-5, rtol=1e-4)
    assert 0 < expected.pixels.float().mean() < 1


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"name": "late_masking"}, "needs a mask with every image"),
        ({"parts": PartsConfig(eval_noise=True)}, "has model.parts.eval_noise=true: its outputs are random"),
        ({"name": "vit"}, "torch cannot export this model to torch_export (RuntimeError: no operator x Next: y)"),
    ],
)
def test_models_that_cannot_be_exported(
    keys: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise ValueError("step 3") from RuntimeError("no operator x\n\nNext: y")

    monkeypatch.setattr(torch.export, "export", fails)
    run, _ = saved(tmp_path / "run", **keys)
    with pytest.raises(UserError) as caught:
        export_model(run, "torch_export", tmp_path / "model.pt2")
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "model.pt2").exists()


def test_an_export_that_differs_is_refused() -> None:
    expected = {"logits": torch.tensor([[100.0], [1.0], [1.0]]), "mask": torch.ones(3, 1, dtype=torch.bool)}
    images = torch.zeros(3, 3, 8, 8)

    def same(given: Tensor) -> dict[str, Tensor]:
        return {name: value[: len(given)].clone() for name, value in expected.items()}

    def other(given: Tensor) -> dict[str, Tensor]:
        return same(given) | {"logits": expected["logits"][: len(given)] + (0.2 if len(given) == 1 else 0)}

    def hidden(given: Tensor) -> dict[str, Tensor]:
        return same(given) | {"mask": torch.zeros(len(given), 1, dtype=torch.bool)}

    assert export._check(same, images, expected, "onnx") == 0
    with pytest.raises(UserError, match="--format onnx: logits of the exported model differs by 0.2 from PyTorch's"):
        export._check(other, images, expected, "onnx")
    with pytest.raises(UserError, match="mask of the exported model differs by 1"):
        export._check(hidden, images, expected, "onnx")


def test_push_to_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What is uploaded: weights, a config without paths, a card with metrics and classes, no image."""
    run, model = saved(tmp_path / "run", init_from="/home/me/secret/run", selector="parts")
    (run / "results.json").write_text(json.dumps({"test/accuracy": 0.875, "val/accuracy": 0.5, "test/nll": None}))
    (run / "sheets").mkdir()
    (run / "sheets" / "0001.png").write_bytes(b"an image of the data")
    pushed = tmp_path / "pushed"

    def upload(self: HfApi, *, folder_path: Path, **_: Any) -> str:
        shutil.copytree(folder_path, pushed)
        return "address of the commit"

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **_: type("Url", (), {"repo_id": repo_id}))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    monkeypatch.setattr(sys, "argv", ["push_to_hub", str(run), "me/squares"])
    push_to_hub.main()
    assert capsys.readouterr().out == "address of the commit\n"
    assert sorted(path.name for path in pushed.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    card = (pushed / "README.md").read_text()
    for words in ("library_name: faithful-vit", "value: 0.875", "| accuracy | 0.8750 |", "| Data set | squares |",
                  "| 2 classes | left, right |", "| model.init_from | run |"):  # fmt: skip
        assert words in card, card
    assert "secret" not in card + (pushed / "config.json").read_text()
    again, images = TwoStageModel.from_pretrained(pushed), torch.randn(2, 3, 32, 32)
    assert torch.equal(again(images).logits, model(images).logits) and again.trained_on == TRAINED_ON


def test_push_to_hub_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OfflineModeIsEnabled("Cannot reach the Hub:\noffline mode is enabled.")

    monkeypatch.setattr(HfApi, "create_repo", offline)
    _, model = saved(tmp_path / "run")
    with pytest.raises(UserError) as caught:
        model.push_to_hub("me/squares")
    assert str(caught.value) == (
        "me/squares: not pushed to the Hugging Face Hub "
        "(OfflineModeIsEnabled: Cannot reach the Hub: offline mode is enabled.)"
    )


def test_the_stored_data_is_what_training_stores(tmp_path: Path) -> None:
    """`TRAINED_ON` stands for the block of a real run."""
    config = tiny_config(tmp_path)
    info = load_split(config.data, "train", train=False, seed=0).info
    assert TrainedOn.of(config.data, info).as_dict().keys() == TRAINED_ON.keys()
