"""Whether there is a run to go on with, and whether it is still the same run."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from engine.run.checkpointing import read_checkpoint
from engine.run.command_line import parse_config
from engine.run.folder import BEST, LAST
from engine.run.resume import changes, resolve_resume
from tests.tiny import KEYS, flags, tiny_config
from train import train


def config_of(out: Path, *more: str, **keys: Any) -> Any:
    return parse_config([*flags({**KEYS, "model.name": "vit", "train.epochs": 1, "out": str(out), **keys}), *more])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    train(config_of(out))
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_auto_starts_where_there_is_nothing(tmp_path: Path) -> None:
    assert resolve_resume(config_of(tmp_path / "none", resume="auto")).resume == "auto"
    assert train(config_of(tmp_path / "new", resume="auto"))["epochs"] == 1


def test_auto_goes_on_where_there_is_a_checkpoint(run: Path) -> None:
    last, before = run / LAST, (run / LAST).stat().st_mtime_ns
    assert resolve_resume(config_of(run, resume="auto")).resume is True
    train(config_of(run, resume="auto"))
    assert last.stat().st_mtime_ns == before, "a finished run was trained again"


def test_auto_starts_a_run_afresh_that_died_before_its_first_checkpoint(run: Path) -> None:
    (run / LAST).unlink()
    for other in (run / LAST.parent).glob("previous*"):
        other.unlink()
    assert (run / BEST / "model.safetensors").exists()
    train(config_of(run, resume="auto"))
    assert read_checkpoint(run / LAST).progress["epoch"] == 1


def test_auto_leaves_a_folder_alone_that_is_no_training_run(run: Path) -> None:
    """As commands.convert_checkpoint writes them: a best model and no checkpoints."""
    shutil.rmtree(run / LAST.parent)
    kept = (run / BEST / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="already holds a run"):
        train(config_of(run, resume="auto"))
    assert (run / BEST / "model.safetensors").read_bytes() == kept


@pytest.mark.parametrize(
    "keys", [{"optim.lr": 0.5}, {"data.batch_size": 4}, {"train.epochs": 2}, {"model.drop_path": 0.1}]
)
def test_a_changed_key_is_named_with_both_values(keys: dict[str, Any], run: Path) -> None:
    before = (run / "config.yaml").read_bytes()
    with pytest.raises(UserError) as caught:
        train(config_of(run, resume=True, **keys))
    (key, value), message = next(iter(keys.items())), str(caught.value)
    assert f"{key}=" in message and f"now {value}" in message and "--resume.allow-change" in message
    assert "\n" not in message and (run / "config.yaml").read_bytes() == before


@pytest.mark.parametrize("flag", ["--resume.allow-change", "--resume.allow-change=true"])
def test_a_changed_key_is_taken_with_leave(flag: str, run: Path) -> None:
    assert train(config_of(run, flag, resume=True, **{"train.epochs": 2}))["epochs"] == 2
    stored = parse_config([f"--config={run / 'config.yaml'}"])
    assert (stored.train.epochs, stored.allow_change, stored.resume) == (2, False, False)


def test_what_trains_nothing_may_change(tmp_path: Path) -> None:
    stored = tiny_config(tmp_path / "a")
    free = {
        "data.workers": 3, "data.eval_batch_size": 5, "train.threads": 2, "train.save_every_steps": 7,
        "wandb.project": "x", "train.sheet_every": 0, "train.device": "auto", "data.root": "elsewhere",
    }  # fmt: skip
    assert changes(stored, tiny_config(tmp_path / "b", free)) == {}
    assert set(changes(stored, tiny_config(tmp_path / "b", {"train.seed": 1, "loss.weights.presence": 0.5}))) == {
        "train.seed", "loss.weights.presence",
    }  # fmt: skip
