"""Every fixed selector with train.py, evaluate.py and python -m explain."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import evaluate
from commands.convert_checkpoint import export_checkpoint
from commands.train_run import train
from common.errors import UserError
from datasets import collate, load_split
from engine.evaluation.loading import load_run_model
from engine.run.command_line import parse_config
from engine.run.folder import BEST, run_config
from explain.loading import load_run
from models import SelectedViT
from tests.scripts.test_train_cli import SCRIPT
from tests.tiny import flags

SELECTORS = ("rollout", "gradcam", "pca", "random", "given", "given_background")
GIVEN = ("given", "given_background")
Command = Callable[..., str]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs evaluate.py; returns its one-line error message, or its output."""

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
        try:
            evaluate.main()
        except SystemExit as stopped:
            assert stopped.code == 2
            error = capsys.readouterr().err
            assert error.startswith("error: ") and error.count("\n") == 1
            return error
        return capsys.readouterr().out

    return run


def train_run(out: Path, **keys: Any) -> dict[str, Any]:
    small = {**SCRIPT, "model.stage_1_backbone": "", "train.epochs": 1, "optim.freeze_stage_1": False}
    return train(parse_config(flags({**small, "out": str(out), **keys})))


def check_run(selector: str, tmp_path: Path, command: Command, **keys: Any) -> None:
    """Train, evaluate and explain one selector at both resolutions."""
    run = tmp_path / selector
    results = train_run(run, **{"model.selector": selector, **keys})
    assert f"accuracy {results['test/accuracy']:.4f}" in command("--run", str(run))
    written = json.loads((run / "evaluation" / "test" / "results.json").read_text())
    assert {key: written[key] for key in results if key.startswith("test/")} == pytest.approx(
        {key: value for key, value in results.items() if key.startswith("test/")}, nan_ok=True
    )
    assert 0 <= written["test/mask_iou"] <= 1 and (run / "evaluation" / "test" / "sheet.png").is_file()
    assert (run / "sheets" / "epoch_001.png").is_file()
    if selector not in GIVEN:
        assert written["test/keep_ratio"] == pytest.approx(0.25)

    model = SelectedViT.from_pretrained(run / BEST)
    config = run_config(run)
    split = load_split(config.data, "test", train=False, seed=config.train.seed)
    batch = collate([split[i] for i in range(4)])
    given = {"mask": batch.mask} if selector in GIVEN else {}
    with torch.no_grad():
        loaded = load_run_model(run, config, "best", 2).eval()
        assert torch.equal(model(batch.image, **given).logits, loaded(batch.image, **given).logits)

    printed = command("--run", str(run), "--method", "rollout", "--metrics", "localization", "as_masks", "--limit", "4")
    if selector in GIVEN:
        assert "cannot explain a SelectedViT" in printed
    else:
        rows = json.loads((run / "evaluation" / "test-methods" / "results.json").read_text())["rows"]
        assert {"rollout", "(its own mask)", "(true mask)"} <= {row["row"] for row in rows}
        assert isinstance(load_run(run).model, SelectedViT)
        assert "need a two-stage model" in command("--run", str(run), "--remove-parts", "0")
        assert "this model has no stages" in command("--run", str(run), "--method", "rollout", "--stage", "1")


def test_attention_from_training_to_a_report(tmp_path: Path, command: Command) -> None:
    check_run("attention", tmp_path, command)


@pytest.mark.slow
@pytest.mark.parametrize("resolution", ["patch", "pixel"])
@pytest.mark.parametrize("selector", SELECTORS)
def test_from_training_to_a_report(selector: str, resolution: str, tmp_path: Path, command: Command) -> None:
    keys: dict[str, Any] = {"model.mask_resolution": resolution}
    if selector == "gradcam":
        train_run(tmp_path / "plain", **{"model.name": "vit"})
        keys["model.selector_weights"] = str(tmp_path / "plain")
    if resolution == "patch":
        check_run(selector, tmp_path, command, **keys)
        return
    results = train_run(tmp_path / "pixel", **{"model.selector": selector, **keys})
    if selector == "given":
        assert results["test/mask_iou"] == 1
    elif selector == "given_background":
        assert results["test/mask_iou"] == 0
    else:
        assert results["test/keep_ratio_pixels"] == pytest.approx(0.25)


def test_a_run_is_evaluated_with_another_mask_of_the_same_network(tmp_path: Path, command: Command) -> None:
    run = tmp_path / "run"
    train_run(run, **{"model.selector": "attention"})
    for keys in (["--model.selector=rollout", "--model.selector_keep=0.5"], ["--model.selector=pca"]):
        assert "accuracy" in command("--run", str(run), *keys)
        written = json.loads((run / "evaluation" / "test" / "results.json").read_text())
        assert written["test/keep_ratio"] == pytest.approx(0.5 if len(keys) == 2 else 0.25)
    for other in ("parts", "random", "given"):
        assert "does not fit" in command("--run", str(run), f"--model.selector={other}")


def test_a_run_without_a_network_takes_any_other_such_mask(tmp_path: Path, command: Command) -> None:
    run, found = tmp_path / "run", {}
    train_run(run, **{"model.selector": "random", "model.mask_resolution": "pixel"})
    for name in ("random", "given", "given_background"):
        assert "accuracy" in command("--run", str(run), f"--model.selector={name}")
        written = json.loads((run / "evaluation" / "test" / "results.json").read_text())
        found[name] = written["test/mask_iou"]
    assert found["given"] == 1 and found["given_background"] == 0 and 0 < found["random"] < 1
    with pytest.raises(
        UserError, match="is a SelectedViT; only models of model.name=two_stage, without another selector"
    ):
        export_checkpoint(run, "ifam", tmp_path / "out.pt")


def test_the_selector_in_the_checkpoint_is_the_one_it_started_with(tmp_path: Path) -> None:
    """Also with a weight average, over epochs, and where the plain ViT is gone when the run is resumed."""
    train_run(tmp_path / "plain", **{"model.name": "vit"})
    before = load_file(tmp_path / "plain" / BEST / "model.safetensors")
    keys = {"model.selector": "gradcam", "model.selector_weights": str(tmp_path / "plain"), "train.ema_decay": 0.9}
    train_run(tmp_path / "run", **keys)
    (tmp_path / "plain").rename(tmp_path / "moved")
    train_run(tmp_path / "run", **keys, resume=True, allow_change=True, **{"train.epochs": 2})
    after = load_file(tmp_path / "run" / BEST / "model.safetensors")
    assert all(torch.equal(after[f"selector.{name}"], tensor) for name, tensor in before.items())


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"optim.stage_1_epochs": 1, "train.epochs": 2}, "selector=pca has no stage 1 to train: optim.stage_1_epochs"),
        ({"model.name": "decoupled"}, "selector=pca replaces stage 1 of model.name=two_stage"),
        ({"model.selector_keep": 0}, "model.selector_keep.*must be a number above 0 and at most 1"),
        ({"model.selector": "dino"}, "model.selector: .*'parts', 'attention'"),
        ({"model.selector": "given", "data.augmentation": "timm"}, "selector=given needs a mask for every image"),
        ({"model.selector": "given", "loss.classification.mixup": 0.4}, "which model.selector=given needs"),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_run(keys: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words) as caught:
        train_run(tmp_path / "run", **{"model.selector": "pca", **keys})
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()
