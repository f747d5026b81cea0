"""Wrong input for train.py: exit code 2, one line on stderr, nothing written, nothing lost."""

import sys
from pathlib import Path
from typing import Any

import pytest

import train
from engine.run.folder import BEST, LAST
from tests.scripts.running import run_script
from tests.tiny import KEYS, flags

BROKEN = "broken.pt"


def fails(keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """The one-line error message of train.py."""
    monkeypatch.setattr(sys, "argv", ["train.py", *flags({**KEYS, "train.epochs": 1, **keys}), *more])
    with pytest.raises(SystemExit) as stopped:
        train.main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert error.startswith("error: ") and error.endswith("\n") and error.count("\n") == 1
    return error


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"model.backbon": "x"}, "model.backbon"),
    "bad value": ({"optim.lr": "fast"}, "optim.lr"),
    "out of range": ({"train.epochs": 0}, "train.epochs"),
    "no data root": ({"data.name": "waterbirds"}, "data.root"),
    "data root of nothing": ({"data.root": "nowhere"}, "data.root=nowhere: data.name=synthetic reads no files"),
    "missing data root": ({"data.name": "cub", "data.root": "nowhere"}, "nowhere"),
    "unknown data set": ({"data.name": "waterbird"}, "waterbirds"),
    "unknown model": ({"model.name": "three_stage"}, "two_stage"),
    "unknown backbone": ({"model.backbone": "vit_nanno_patch8"}, "vit_nanno_patch8"),
    "no vision transformer": ({"model.backbone": "resnet18"}, "resnet18"),
    "missing weights": ({"model.weights": "nowhere.safetensors"}, "nowhere.safetensors"),
    "unreadable weights": ({"model.weights": BROKEN}, BROKEN),
    "size and patch": ({"data.image_size": 36}, "data.image_size"),
    "too few images": ({"data.batch_size": 100}, "data.batch_size"),
    "no such device": ({"train.device": "abacus"}, "train.device"),
    "mixup and topk": ({"loss.classification.mixup": 0.5, "loss.classification.kind": "balanced_topk"}, "mixup"),
    "resume of nothing": ({"resume": True}, "--resume"),
    "no masks": ({"model.name": "decoupled", "data.augmentation": "timm"}, "data.mask_folder"),
    "no mask folder": ({"data.mask_folder": "nowhere"}, "data.mask_folder"),
    "mixup and masks": ({"model.name": "late_masking", "loss.classification.mixup": 0.5}, "mixup"),
    "unknown best metric": ({"train.best_metric": "accurracy"}, "train.best_metric"),
    "unknown optimiser": ({"optim.name": "adamsandler"}, "adamsandler"),
}


@pytest.mark.parametrize(("keys", "named"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line_and_leaves_nothing(
    keys: dict[str, Any],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(BROKEN).write_bytes(b"no weights")
    assert named in fails({"out": "run", **keys}, monkeypatch, capsys)
    assert [path.name for path in tmp_path.iterdir()] == [BROKEN]


def old_run(out: Path) -> dict[Path, bytes]:
    """A folder that looks like a run's."""
    for name in (LAST, BEST / "model.safetensors", Path("config.yaml"), Path("notes.txt")):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(f"old {name}")
    return contents(out)


def contents(out: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({}, "--resume=true or --overwrite=true"),
        ({"resume": True}, "config.yaml"),  # which is no config, beside a checkpoint that is none
        ({"overwrite": True, "model.backbone": "vit_nanno_patch8"}, "vit_nanno_patch8"),
        ({"overwrite": True, "resume": True}, "contradict"),
        ({"overwrite": True, "optim.name": "adamsandler"}, "adamsandler"),
    ],
)
def test_an_existing_run_is_not_touched(
    keys: dict[str, Any],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = old_run(tmp_path / "run")
    nano = {"model.backbone": "vit_nano_patch8"}
    assert named in fails({"out": str(tmp_path / "run"), **nano, **keys}, monkeypatch, capsys)
    assert contents(tmp_path / "run") == before


def test_a_run_folder_that_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").write_text("mine")
    assert "--out" in fails({"out": str(tmp_path / "run")}, monkeypatch, capsys)
    assert (tmp_path / "run").read_text() == "mine"


def test_a_config_file_that_does_not_parse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text("optim:\n\tlr: 1")
    error = fails({"out": str(tmp_path / "run")}, monkeypatch, capsys, f"--config={tmp_path / 'mine.yaml'}")
    assert "mine.yaml" in error and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_mistake_on_the_real_command_line(tmp_path: Path) -> None:
    done = run_script(tmp_path, "train.py", "--model.backbon", "x")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
