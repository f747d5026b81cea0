"""Whether there is a run to resume, and whether its config is still the same."""

import shutil
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from commands.train_run import train
from common.errors import UserError
from engine.run.checkpointing import read_checkpoint
from engine.run.command_line import parse_config
from engine.run.folder import BEST, LAST
from engine.run.resume import changes, resolve_resume
from tests.tiny import KEYS, flags, tiny_config


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
    """As written by commands.convert_checkpoint: a best model and no checkpoints."""
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


MAY_CHANGE = {
    "out", "resume", "overwrite", "allow_change", "wandb.mode", "wandb.project", "wandb.entity", "wandb.name",
    "wandb.group", "wandb.job_type", "wandb.tags", "data.root", "data.workers", "data.eval_batch_size",
    "data.max_unreadable", "data.check_images", "data.image_cache", "data.image_cache_gb", "model.weights",
    "model.stage_1_weights", "model.selector_weights", "model.init_from", "optim.zero", "train.device",
    "train.threads", "train.sheet_every", "train.save_every_steps", "train.keep_every", "train.log_test",
    "train.token_cache", "train.token_cache_gb", "train.trackers",
}  # fmt: skip


def with_each_key_changed(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every dotted key with a config in which only that key has another value."""
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            for key, group in with_each_key_changed(value, f"{prefix}{item.name}."):
                yield key, replace(config, **{item.name: group})
        else:
            yield prefix + item.name, replace(config, **{item.name: ("other than", value)})


def test_only_keys_that_do_not_affect_training_may_change(tmp_path: Path) -> None:
    stored = tiny_config(tmp_path)
    found = {key: changes(stored, changed) for key, changed in with_each_key_changed(stored)}
    assert {key for key, reported in found.items() if not reported} == MAY_CHANGE
    for key, reported in found.items():
        assert key in MAY_CHANGE or list(reported) == [key]
    assert len(found) > 100
