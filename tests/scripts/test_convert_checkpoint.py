"""commands.convert_checkpoint on the command line: published checkpoints to runs and back."""

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import evaluate
from commands import convert_checkpoint
from engine.run.command_line import load_config
from models.pdiscoformer import PDiscoFormer
from models.two_stage import TwoStageModel
from models.weights.published_layout import FORMATS
from tests.bomb import Bomb
from tests.engine.run.test_full_disk import no_file_longer_than
from tests.models.published_states import Sizes, State, forward, published_state
from tests.models.small import images

SIZES = Sizes(classes=2)


def snapshot(file: Path, form: str = "ifam", sizes: Sizes = SIZES) -> State:
    """A training snapshot as published, and its tensors."""
    state = published_state(form, sizes)
    content = {"model_state": state, "optimizer_state": {"state": {}, "param_groups": [{"lr": 1e-6}]}}
    torch.save(content | {"scaler_state": {}, "finished_epoch": 89}, file)
    return state


def convert(*words: str | Path) -> None:
    convert_checkpoint.main([str(word) for word in words])


def fails(words: list[str | Path], capsys: pytest.CaptureFixture[str]) -> str:
    """The one-line error message."""
    with pytest.raises(SystemExit) as stopped:
        convert(*words)
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert error.startswith("error: ") and error.count("\n") == 1, error
    return error


@pytest.mark.parametrize("form", FORMATS)
@torch.no_grad()
def test_there_and_back(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registers = 0 if form == "ifam-hf" else 4
    state = snapshot(tmp_path / "snapshot_best.pt", form, Sizes(classes=2, registers=registers))
    backbone = "vit_t_dino" if registers else "vit_t_rad"
    convert(tmp_path / "snapshot_best.pt", "--to", tmp_path / "run", "--backbone", backbone)
    out = capsys.readouterr().out
    assert f"read snapshot_best.pt: {form}, 3 parts (layer_norm), 2 classes; ViT of width 32, 3 blocks" in out
    assert f"{tmp_path / 'run'}: {backbone}, images of 32 x 32 pixels" in out
    with no_file_longer_than(4000):
        for name in ("full.pt", "full.safetensors"):
            assert "cannot write" in fails([tmp_path / "run", "--export", form, "--to", tmp_path / name], capsys)
    assert not list(tmp_path.glob("*full*"))
    assert "cannot write" in fails([tmp_path / "run", "--export", form, "--to", "/proc/read_only.pt"], capsys)
    kind = PDiscoFormer if form == "pdiscoformer" else TwoStageModel
    model, x = kind.from_pretrained(tmp_path / "run" / "best"), images(2)
    if form == "ifam":
        torch.testing.assert_close(model(x).logits, forward(state, x).logits.float(), atol=2e-4, rtol=2e-4)
    for name in ("back.pt", "back.safetensors"):
        convert(tmp_path / "run", "--export", form, "--to", tmp_path / "new" / name)
    again = torch.load(tmp_path / "new" / "back.pt", weights_only=True)["model_state"]
    bare = load_file(tmp_path / "new" / "back.safetensors")
    assert again.keys() == bare.keys() == state.keys()
    for name in (name for name in state if not name.endswith("mask_token")):
        assert torch.equal(again[name], state[name]) and torch.equal(bare[name], state[name])
    convert(tmp_path / "run" / "best", "--export", form, "--to", tmp_path / "again.pt")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["back.pt", "back.safetensors"]


def test_the_runs_config_is_the_given_one_with_the_checkpoints_model(tmp_path: Path) -> None:
    snapshot(tmp_path / "file.pt")
    content: dict[str, Any] = {
        "data": {"name": "waterbirds", "image_size": 518, "mean": [0.4, 0.4, 0.4]},
        "model": {"stage_1_backbone": "vit_pico_patch8", "empty_mask": "prefix_only", "parts": {"num_parts": 8}},
    }
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(content))
    words = [tmp_path / "file.pt", "--data-config", tmp_path / "data.yaml", "--backbone", "vit_t_dino"]
    convert(*words, "--to", tmp_path / "a")
    convert(*words, "--to", tmp_path / "b", "--image-size", "48", "64")
    first, second = load_config(tmp_path / "a" / "config.yaml"), load_config(tmp_path / "b" / "config.yaml")
    assert (first.data.name, first.data.image_size, first.data.mean) == ("waterbirds", 32, (0.4, 0.4, 0.4))
    assert (first.model.stage_1_backbone, first.model.empty_mask) == ("", "prefix_only")
    assert (first.model.backbone, first.model.parts.num_parts) == ("vit_t_dino", 3)
    assert second.data.size_hw == (48, 64)
    assert json.loads((tmp_path / "b" / "best" / "config.json").read_text())["image_size"] == [48, 64]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["ifam", "pdiscoformer"])
def test_evaluate_measures_it(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot(tmp_path / "file.pt", form)
    options = {"test_images": 12, "val_images": 4, "train_images": 4}
    data = {"name": "synthetic", "synthetic": options, "workers": 0, "eval_batch_size": 5}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"data": data, "train": {"device": "cpu", "threads": 1}}))
    run = tmp_path / "run"
    convert(tmp_path / "file.pt", "--to", run, "--backbone", "vit_t_dino", "--data-config", tmp_path / "data.yaml")
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--run", str(run), "--metrics", "accuracy", "mask"])
    evaluate.main()
    results = json.loads((run / "evaluation" / "test" / "results.json").read_text())
    assert results["images"] == 12 and 0 <= results["test/accuracy"] <= 1
    assert (run / "evaluation" / "test" / "report.html").is_file()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_malicious_file_does_not_act(zipped: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, file = tmp_path / "trace", tmp_path / "file.pt"
    if zipped:
        torch.save({"model_state": published_state("ifam"), "scaler_state": Bomb(trace)}, file)
    else:
        file.write_bytes(pickle.dumps({"model_state": Bomb(trace)}))
    assert "file.pt: " in fails([file, "--to", tmp_path / "run"], capsys)
    assert not trace.exists() and not (tmp_path / "run").exists()
    torch.load(file, weights_only=False) if zipped else pickle.loads(file.read_bytes())
    assert trace.exists(), "the bomb works"


def test_mistakes_are_one_line_and_leave_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, run = tmp_path / "file.pt", tmp_path / "run"
    snapshot(file)
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pt")
    assert "no such checkpoint file" in fails([tmp_path / "absent.pt", "--to", run], capsys)
    assert "other.pt: no fc_landmarks.weight in it" in fails([tmp_path / "other.pt", "--to", run], capsys)
    assert "--backbone: give timm's name" in fails([file, "--to", run], capsys)
    nowhere = fails([file, "--to", run, "--backbone", "vit_nowhere"], capsys)
    assert "timm has no model 'vit_nowhere'" in nowhere
    assert "--image-size: give one side" in fails([file, "--to", run, "--image-size", "1", "2", "3"], capsys)
    odd = [file, "--to", run, "--backbone", "vit_t_dino", "--image-size", "33"]
    assert "(33, 33) is not a multiple" in fails(odd, capsys)
    assert "no such config file" in fails([file, "--to", run, "--data-config", tmp_path / "no.yaml"], capsys)
    assert "--export does not take" in fails([run, "--export", "ifam", "--to", file, "--backbone", "x"], capsys)
    assert not run.exists()


def test_nothing_is_overwritten_and_only_published_kinds_are_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, run = tmp_path / "file.pt", tmp_path / "run"
    snapshot(file)
    convert(file, "--to", run, "--backbone", "vit_t_dino")
    assert "already contains a run; choose another folder" in fails([file, "--to", run], capsys)
    assert "file.pt already exists" in fails([run, "--export", "ifam", "--to", file], capsys)
    assert "is neither a run folder nor one" in fails([tmp_path, "--export", "ifam", "--to", tmp_path / "x"], capsys)
    assert "pdiscoformer is not a format for a TwoStageModel" in fails(
        [run, "--export", "pdiscoformer", "--to", tmp_path / "x"], capsys
    )
    config = run / "best" / "config.json"
    config.write_text(config.read_text().replace('"two_stage"', '"vit"'))
    assert "is a PlainViT; only models of" in fails([run, "--export", "ifam", "--to", tmp_path / "x"], capsys)
