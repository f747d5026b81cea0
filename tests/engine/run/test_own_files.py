"""`--overwrite` deletes what a run wrote and nothing else; a run and its evaluations write into their own folder."""

import argparse
from dataclasses import replace
from pathlib import Path

import pytest

from commands.run_context import RunContext
from common.errors import UserError
from engine.run import own_files
from engine.run.command_line import load_config, parse_config
from engine.run.config import RunConfig
from engine.run.folder import BEST, LAST, open_run
from engine.run.own_files import PROJECT
from tests.tiny import tiny_config, tiny_model

CONFIG = {"model.name": "vit"}
WRITTEN = (
    "metrics.jsonl", "sheets/epoch_002.png", "sheets/.epoch_002.png.71.tmp", "checkpoints/.tmpAb3dEf",
    "checkpoints/epoch_001.safetensors", "evaluation/test/report.html", "evaluation/test-methods/per_image/lrp.csv",
    "evaluation/test/metrics.json", "part_thresholds/0.95.json", "best/model.safetensors", "export/model.onnx.data",
    "tensorboard/events.out.tfevents.1.host.2.0",
)  # fmt: skip
FOREIGN = ("notes.txt", "sheets/mine.png", "evaluation/test/notes/a.md", "best/model.safetensors/x", ".git/HEAD")


def finished(out: Path, *more: str) -> RunConfig:
    """A folder with the files of a run, and more; its config with `overwrite`."""
    config = tiny_config(out, CONFIG)
    open_run(config, tiny_model(config))
    for name in (str(LAST), *WRITTEN, *more):
        path = out / name
        if path.parent.is_file():
            path.parent.unlink()
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_dir():
            path.write_text(f"old {name}")
    return replace(config, overwrite=True)


def contents(out: Path) -> dict[str, str]:
    return {str(path.relative_to(out)): path.read_text() for path in sorted(out.rglob("*")) if path.is_file()}


def test_all_that_a_run_wrote_is_deleted_and_other_programs_logs_stay(tmp_path: Path) -> None:
    config = finished(tmp_path / "run", "wandb/run-1/files/output.log", "submitit/1_0_log.out")
    open_run(config, tiny_model(config))
    left = {"best/config.json", "config.yaml", "wandb/run-1/files/output.log", "submitit/1_0_log.out"}
    assert set(contents(tmp_path / "run")) == left


@pytest.mark.parametrize("name", FOREIGN)
def test_a_folder_with_any_other_file_is_left_as_it_is(name: str, tmp_path: Path) -> None:
    config = finished(tmp_path / "run", name)
    before = contents(tmp_path / "run")
    with pytest.raises(UserError, match=rf"--overwrite: .* also holds {name}, which no run writes"):
        open_run(config, tiny_model(config))
    assert contents(tmp_path / "run") == before


@pytest.mark.parametrize("place", ["home", "above home", "project", "current", "above"])
def test_places_that_are_never_deleted(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where they look like a run."""
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    config = finished(tmp_path / "a")
    if place in ("home", "above home"):
        monkeypatch.setenv("HOME", str(tmp_path / "a" if place == "home" else inner))
    elif place == "project":
        monkeypatch.setattr(own_files, "PROJECT", tmp_path / "a")
    else:
        monkeypatch.chdir(tmp_path / "a" if place == "current" else inner)
    before = contents(tmp_path / "a")
    with pytest.raises(UserError, match="--overwrite: .* is or contains "):
        open_run(config, tiny_model(config))
    assert contents(tmp_path / "a") == before


def test_the_project_is_this_one() -> None:
    assert (PROJECT / "train.py").is_file() and (PROJECT / "engine" / "run").is_dir()


@pytest.mark.parametrize("text", ["overwrite: true", "overwrite: 'true'", "overwrite: 1", "overwrite: [x]"])
def test_a_config_file_cannot_order_it(text: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match="overwrite: it deletes a run, so it is a flag"):
        load_config(tmp_path / "mine.yaml")
    (tmp_path / "mine.yaml").write_text("overwrite: false")  # as in the config that a run saves
    assert parse_config([f"--config={tmp_path / 'mine.yaml'}", "--overwrite"]).overwrite is True


@pytest.mark.parametrize("out", ["", " "])
def test_the_run_folder_has_a_name(out: str) -> None:
    with pytest.raises(UserError, match="--out must name a folder"):
        parse_config([f"--out={out}"])


@pytest.mark.parametrize("name", ["evaluation", "evaluation/test", "sheets", "checkpoints", "best"])
def test_links_to_other_folders_are_not_written_through(name: str, tmp_path: Path) -> None:
    config, elsewhere = tiny_config(tmp_path / "run", CONFIG), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "run" / name).symlink_to(elsewhere)
    with pytest.raises(UserError, match=f"run/{name} is a link"):
        open_run(config, tiny_model(config))
    args = argparse.Namespace(run=tmp_path / "run", out=None, checkpoint="best")
    with pytest.raises(UserError, match=f"run/{name} is a link"):
        RunContext.open(args, [], "evaluation/test")
    assert not list(elsewhere.iterdir())


def test_a_linked_file_is_replaced_and_a_linked_run_folder_is_fine(tmp_path: Path) -> None:
    config, mine = tiny_config(tmp_path / "link", CONFIG), tmp_path / "mine.txt"
    mine.write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for name in ("config.yaml", "results.json", ".config.yaml.tmp"):
        (tmp_path / "run" / name).symlink_to(mine)
    (tmp_path / "run" / BEST).mkdir()
    (tmp_path / "run" / BEST / "model.safetensors").symlink_to(mine)
    open_run(replace(config, overwrite=True), tiny_model(config))
    assert mine.read_text() == "mine" and not (tmp_path / "run" / "config.yaml").is_symlink()
    assert not (tmp_path / "run" / "results.json").is_symlink()
