"""A run stores its classes and its input, and other data is matched to it by the names of the classes."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import evaluate
from commands.train_run import train
from common.errors import UserError
from datasets import DataConfig, DatasetInfo, RawSample, Split, build_transform
from datasets.trained_on import TrainedOn, with_trained_labels
from engine.evaluation.loading import read_split
from engine.run.folder import run_config, trained_on
from explain.loading import load_run
from models import PlainViT
from tests.tiny import tiny_config

COLOURS = {"cat": (220, 30, 30), "dog": (30, 220, 30), "emu": (30, 30, 220)}
KEYS = {
    "model.name": "vit", "data.name": "imagenet", "data.val_fraction": 0.25, "data.augmentation": "none",
    "data.evaluation": "squash", "data.mean": [0.4, 0.5, 0.6], "optim.lr": 1e-2, "train.epochs": 4,
}  # fmt: skip


def coloured_tree(folder: Path, classes: Mapping[str, str], count: int = 4) -> Path:
    """`count` plain images in each class folder; `classes`: folder -> name of its colour."""
    for name, colour in classes.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (32, 32), tuple(c + i for c in COLOURS[colour])).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain ViT that is right on every colour; outputs: cat, dog, emu."""
    base = tmp_path_factory.mktemp("colours")
    names = {name: name for name in COLOURS}
    coloured_tree(base / "data" / "train", names, 12)
    coloured_tree(base / "data" / "val", names)
    results = train(tiny_config(base / "run", {**KEYS, "data.root": str(base / "data")}))
    assert results["test/accuracy"] == 1
    return base / "run"


def measured(run: Path, root: Path, out: Path) -> dict[str, Any]:
    """results.json of evaluate.py on the test split of other data."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["evaluate.py", f"--run={run}", f"--data.root={root}", f"--out={out}"])
        evaluate.main()
    return dict(json.loads((out / "results.json").read_text()))


@pytest.mark.parametrize(
    "classes", [{"Dog": "dog", "cat": "cat", "emu": "emu"}, {"emu": "emu", "dog": "dog"}], ids=["case", "fewer"]
)
def test_labels_are_matched_by_name(classes: dict[str, str], run: Path, tmp_path: Path) -> None:
    coloured_tree(tmp_path / "data" / "val", classes)
    results = measured(run, tmp_path / "data", tmp_path / "out")
    assert results["test/accuracy"] == 1 and results["images"] == 4 * len(classes)
    rows = (tmp_path / "out" / "predictions.csv").read_text().splitlines()[1:]
    numbers = {row.split("/")[-2].lower(): int(row.split(",")[1]) for row in rows}
    assert numbers == {name: label for label, name in enumerate(COLOURS) if name in numbers}


def test_an_unknown_class_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coloured_tree(tmp_path / "val", {"cat": "cat", "cow": "dog"})
    with pytest.raises(SystemExit):
        measured(run, tmp_path, tmp_path / "out")
    error = capsys.readouterr().err
    assert f"{run} was not trained on the class cow" in error and "cat, dog, emu" in error
    assert error.count("\n") == 1 and not (tmp_path / "out" / "results.json").exists()


def test_what_is_stored(run: Path) -> None:
    trained = trained_on(run)
    assert trained and trained.class_names == ("cat", "dog", "emu") and trained.mean == (0.4, 0.5, 0.6)
    assert (trained.name, trained.image_size, trained.evaluation) == ("imagenet", (32, 32), "squash")
    model = PlainViT.from_pretrained(run / "best")
    assert model.trained_on["class_names"] == ["cat", "dog", "emu"]
    shown = load_run(run)
    assert shown.class_names == ["cat", "dog", "emu"] and "data.evaluation=squash" in shown.preprocessing
    assert (shown.mean, shown.size) == ((0.4, 0.5, 0.6), (32, 32))


def test_a_saved_copy_keeps_it(run: Path, tmp_path: Path) -> None:
    model = PlainViT.from_pretrained(run / "best")
    model._save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(model._hub_mixin_config))
    assert PlainViT.from_pretrained(tmp_path).trained_on == model.trained_on


def without_names(run: Path, out: Path) -> Path:
    """The run as an earlier version saved it."""
    (out / "best").mkdir(parents=True)
    (out / "config.yaml").write_text((run / "config.yaml").read_text())
    values = json.loads((run / "best" / "config.json").read_text())
    values.pop("data")
    (out / "best" / "config.json").write_text(json.dumps(values))
    (out / "best" / "model.safetensors").write_bytes((run / "best" / "model.safetensors").read_bytes())
    return out


def test_an_earlier_run_loads_with_a_warning(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old = without_names(run, tmp_path / "old")
    split = read_split(run_config(old), "test", None, old)
    assert len(split) == 12 and split.info.class_names == ("cat", "dog", "emu")
    assert [str(old) in r.message and "labels are taken by number" in r.message for r in caplog.records] == [True]
    assert load_run(old).class_names == ["cat", "dog", "emu"]  # of its data, which are still there


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [("class_names", 7, "data.class_names"), ("class_names", ["cat", "dog"], "2 names of 3 classes"),
     ("mean", [1, 2], "data.mean"), ("colour", 1, "'colour'"), ("multi_label", "perhaps", "data.multi_label"),
     ("name", None, "data.name"), ("", [], "data is a group of keys"), ("", "x.json", "data is a group of keys")],
)  # fmt: skip
def test_damaged_names_are_not_replaced_by_numbers(
    key: str, value: Any, problem: str, run: Path, tmp_path: Path
) -> None:
    old = without_names(run, tmp_path / "old")
    content = json.loads((run / "best" / "config.json").read_text())
    if key:
        content["data"][key] = value
    else:
        content["data"] = value
    (old / "best" / "config.json").write_text(json.dumps(content))
    for read in (trained_on, load_run):
        with pytest.raises(UserError, match=problem) as caught:
            read(old)
        assert "config.json" in str(caught.value) and "\n" not in str(caught.value)


def test_names_stored_by_an_earlier_version(run: Path, tmp_path: Path) -> None:
    old = without_names(run, tmp_path / "old")
    content = json.loads((run / "best" / "config.json").read_text())
    del content["data"]["interpolation"], content["data"]["crop"]
    (old / "best" / "config.json").write_text(json.dumps(content))
    assert trained_on(old) == trained_on(run)


def test_other_classes_neither_resume_nor_initialise(run: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        coloured_tree(tmp_path / split, {"Dog": "dog", "cat": "cat", "emu": "emu"}, 12)
    keys = {**KEYS, "data.root": str(tmp_path)}
    with pytest.raises(UserError, match="was trained on the classes cat, dog, emu, not Dog, cat, emu"):
        train(tiny_config(run, {**keys, "resume": True}))
    with pytest.raises(UserError, match="was trained on the classes cat, dog, emu"):
        train(tiny_config(tmp_path / "run", {**keys, "model.init_from": str(run)}))


class Several:
    """Two images of three classes, several in an image."""

    info = DatasetInfo("several", ("C", "A", "B"), ("g",), multi_label=True)
    labels, groups = (0, 2), (0, 0)

    def __len__(self) -> int:
        return 2

    def read(self, index: int) -> RawSample:
        present = np.array([[True, True, False], [False, False, True]][index])
        return RawSample(
            np.zeros((8, 8, 3), np.uint8), self.labels[index], str(index), 0, boxes=np.array([[0, 0, 4, 4]]),
            box_labels=np.array([self.labels[index]]), present=present,
        )  # fmt: skip


@pytest.fixture
def relabelled() -> Callable[..., Split]:
    config = DataConfig(image_size=8)

    def make(*names: str, info: DatasetInfo = Several.info) -> Split:
        raw = Several()
        raw.info = info
        split = Split(raw, build_transform(config, train=False), train=False, seed=0)
        trained = TrainedOn.of(config, DatasetInfo("mine", names))
        assert TrainedOn.from_dict(json.loads(json.dumps(trained.as_dict()))) == trained
        return with_trained_labels(split, trained, "RUN")

    return make


def test_several_labels_and_boxes(relabelled: Callable[..., Split]) -> None:
    split = relabelled("A", "B", "C", "D")
    assert (list(split.labels), split.raw.groups, split.info.num_outputs) == ([2, 1], (0, 0), 4)
    assert split.info.multi_label and split.info.group_names == ("g",)
    first, second = split[0], split[1]
    assert first.present is not None and first.present.tolist() == [True, False, True, False]
    assert second.present is not None and second.present.tolist() == [False, True, False, False]
    assert first.box_labels is not None and first.box_labels.tolist() == [2] and (first.label, second.label) == (2, 1)


def test_names_that_differ_in_case_only(relabelled: Callable[..., Split]) -> None:
    with pytest.raises(UserError, match="not trained on the class C, which several has; its classes are c, A, B, a"):
        relabelled("c", "A", "B", "a")  # folding case would be ambiguous
    info = replace(Several.info, class_names=("a", "A", "b"))
    with pytest.raises(UserError, match="differ in upper and lower case only"):
        relabelled("A", "B", "C", info=info)


def test_keys_come_before_names(relabelled: Callable[..., Split]) -> None:
    info = replace(Several.info, class_keys=("A", "B", "C"))  # reworded names of the same classes
    split = relabelled("A", "B", "C", info=info)
    assert isinstance(split.raw, Several) and split.info is info
