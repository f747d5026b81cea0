"""What a run depends on is saved with it: another config or other data are named on resuming and between processes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from commands.train_run import train
from common.errors import UserError
from datasets.config import DataConfig
from datasets.fingerprint import fingerprint
from datasets.readers.folder import Folder
from datasets.subset import subset
from engine.run import fingerprint as module
from engine.run.checkpointing import read_checkpoint, write_safetensors
from engine.run.config import RunConfig
from engine.run.fingerprint import Fingerprint
from engine.run.folder import CONFIG_FILE, LAST, RESULTS
from tests.tiny import CPU, tiny_config, tiny_splits

TRAINED = {"model.name": "vit", "train.epochs": 1, "train.sheet_every": 0, "data.name": "folder"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data of two classes and a run on them."""
    base = tmp_path_factory.mktemp("fingerprint")
    for split, count in (("train", 8), ("val", 4), ("test", 4)):
        for label in ("cat", "dog"):
            (base / "data" / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = np.full((32, 32, 3), 10 * number + 90 * (label == "dog"), np.uint8)
                Image.fromarray(pixels).save(base / "data" / split / label / f"{label}{number}.png")
    train(config(base))
    return base


@pytest.fixture
def base(finished: Path, tmp_path: Path) -> Path:
    """The same somewhere else, with no config saved: the checkpoint alone says what the run was."""
    copied = Path(shutil.copytree(finished, tmp_path / "copy"))
    (copied / "run" / CONFIG_FILE).unlink()
    (copied / "run" / RESULTS).unlink()
    return copied


def config(base: Path, **keys: Any) -> RunConfig:
    return tiny_config(base / "run", {**TRAINED, "data.root": str(base / "data"), **keys})


def resume(base: Path, allow: bool = False, **keys: Any) -> dict[str, Any]:
    return train(replace(config(base, **keys), resume=True, allow_change=allow))


def test_the_same_data_elsewhere_are_the_same_and_a_lost_config_is_written_again(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resume(base)
    said = capsys.readouterr().out
    assert "have changed" not in said and "last bits" not in said and (base / "run" / CONFIG_FILE).is_file()


def swapped(data: Path) -> None:
    for one, other in (("cat/cat0.png", "dog/dog0.png"),):
        (data / "train" / one).rename(data / "train" / other.replace("dog0", "cat0"))
        (data / "train" / other).rename(data / "train" / one.replace("cat0", "dog0"))


CHANGES: dict[str, tuple[Any, str]] = {
    "a file gone": (lambda data: (data / "train/cat/cat3.png").unlink(), "16 images in the train split, now 15"),
    "a file added": (
        lambda data: shutil.copy(data / "test/cat/cat3.png", data / "test/cat/x.png"),
        "8 images in the test split, now 9",
    ),
    "renamed": (
        lambda data: (data / "val/cat/cat3.png").rename(data / "val/cat/y.png"),
        "the names of the images of the val split",
    ),
    "swapped": (swapped, "the names of the images of the train split"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changed_data_are_named(name: str, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, named = CHANGES[name]
    change(base / "data")
    before = read_checkpoint(base / "run" / LAST).progress
    with pytest.raises(UserError, match=rf"--resume: the run's data have changed: {named}.*--resume.allow-change"):
        resume(base)
    assert not (base / "run" / CONFIG_FILE).exists()
    if name == "renamed":
        resume(base, allow=True)
        assert "resumed although the run's data have changed" in capsys.readouterr().out
        assert read_checkpoint(base / "run" / LAST).progress == before  # finished: nothing was trained


def test_a_changed_setting_is_named_without_the_saved_config(base: Path) -> None:
    with pytest.raises(UserError, match=r"settings have changed: train.seed=0, now 7"):
        resume(base, **{"train.seed": 7})
    resume(base, **{"data.workers": 1, "train.sheet_every": 3})


def test_checkpoints_of_earlier_versions_and_other_threads_are_said(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = read_checkpoint(base / "run" / LAST)
    stored = last.progress["fingerprint"]
    write_safetensors(base / "run" / LAST, last.tensors, {**last.progress, "fingerprint": {**stored, "threads": 7}})
    resume(base)
    assert "used 7 CPU threads, now 1: its weights will differ in the last bits" in capsys.readouterr().out
    progress = {key: value for key, value in last.progress.items() if key != "fingerprint"}
    write_safetensors(base / "run" / LAST, last.tensors, progress)
    resume(base)
    assert "no record of the run's data" in capsys.readouterr().out


def test_labels_and_groups_count_and_a_subset_is_its_own(base: Path) -> None:
    split = tiny_splits(config(base))["train"]
    whole, few = fingerprint(split), fingerprint(subset(split, [3, 5]))
    assert json.loads(json.dumps(whole)) == whole and few["images"] == 2 and few["names"] != whole["names"]
    assert fingerprint(subset(split, range(len(split)))) == whole
    raw = Folder(DataConfig(name="folder", root=str(base / "data")), "train")
    raw.labels[0] ^= 1
    assert {key for key, value in fingerprint(split.over(raw)).items() if value != whole[key]} == {"labels"}
    made = tiny_splits(tiny_config(base))["train"]  # of a data set without files
    assert fingerprint(made)["names"] == "" and fingerprint(made)["groups"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            lambda one: replace(one, config={**one.config, "train.seed": 5}),
            "train.seed=0 in process 0 and 5 in process 1",
        ),
        (
            lambda one: replace(one, data={**one.data, "val": {**one.data["val"], "labels": "x"}}),
            "the labels of the val split",
        ),
        (lambda one: replace(one, data={**one.data, "val": {**one.data["val"], "images": 3}}), "and 3 in process 1"),
        (lambda one: replace(one, config={**one.config, "data.root": "/b", "wandb.name": "b"}, threads=9), ""),
    ],
)
def test_processes_that_differ_are_named(
    change: Any, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stated = tiny_config(tmp_path)
    own = Fingerprint.of(stated, tiny_splits(stated), CPU)
    monkeypatch.setattr(module, "gather", lambda value: [value, change(value)])
    if named:
        with pytest.raises(UserError, match=named):
            own.check_processes()
    else:
        own.check_processes()
