"""The published part evaluation on the command line, on generated birds in memory and in CUB's layout on disk."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest

import evaluate
import train
from datasets.formats.layout import WATERBIRDS
from tests.scripts.method_runs import SCRIPT, fails
from tests.scripts.running import ROOT
from tests.tiny import flags

pytestmark = pytest.mark.slow
PARTS = ("--metrics", "parts", "keypoints", "foreground")
RAW = ("--data.mean=[0,0,0]", "--data.std=[1,1,1]")
KEYS = {
    "test/part_nmi", "test/part_ari", "test/count/part_points", "test/keypoint_error", "test/count/keypoints",
    "test/foreground_iou", "test/background_iou",
}  # fmt: skip
PIXELS = {"test/part_nmi_pixels", "test/part_ari_pixels", "test/count/part_pixels"}
Measure = Callable[..., dict[str, Any]]


@pytest.fixture
def measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Measure:
    """Run evaluate.py; returns the content of results.json."""

    def run(folder: Path, *arguments: str) -> dict[str, Any]:
        out = tmp_path / "out"
        monkeypatch.setattr(sys, "argv", ["evaluate.py", "--run", str(folder), *arguments, "--out", str(out)])
        evaluate.main()
        return json.loads((out / "results.json").read_text(), parse_constant=pytest.fail)

    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, birds: Path) -> Path:
    """A folder with the runs `two` (two-stage), `plain`, and `cub`, the first on the birds as CUB.

    The learning rate is so small that the parts stay as initialised, where each has patches.
    """
    folder = tmp_path_factory.mktemp("runs")
    two_stage = {**SCRIPT, "model.stage_1_backbone": "vit_pico_patch8", "optim.lr": 1e-7}
    layout = {"data.name": "cub", "data.root": str(birds), "data.augmentation": "cub_original"}
    models = {"two": two_stage, "plain": {**SCRIPT, "model.name": "vit"}, "cub": {**two_stage, **layout}}
    with pytest.MonkeyPatch.context() as patch:
        for name, keys in models.items():
            patch.setattr(sys, "argv", ["train.py", *flags({**keys, "out": str(folder / name)})])
            train.main()
    return folder


def named(results: dict[str, Any]) -> set[str]:
    return {key for key in results if key.startswith("test/")}


def values(results: dict[str, Any]) -> dict[str, float]:
    return {key: results[key] for key in sorted(named(results))}


def test_the_protocol_in_memory(runs: Path, measure: Measure) -> None:
    results = measure(runs / "two", *PARTS)
    assert named(results) == KEYS | PIXELS
    assert all(0 < results[f"test/{key}"] < 1 for key in ("part_nmi", "part_nmi_pixels", "foreground_iou"))
    assert results["test/count/part_points"] == results["test/count/keypoints"] == 12 * 5
    assert results["test/count/part_pixels"] == 12 * 32 * 32
    assert results["fitted"] == {"metrics": ["keypoints"], "split": "train", "images": 34}
    other = measure(runs / "two", *PARTS, "--data.eval_batch_size", "12")
    assert values(other) == pytest.approx(values(results), rel=1e-5)
    by_default, fitted = measure(runs / "two"), {"test/keypoint_error", "test/count/keypoints"}
    assert set(values(results)) - set(values(by_default)) == fitted and "test/accuracy" in by_default
    assert by_default["fitted"] is None


def test_without_normalisation_as_published_and_on_a_sample(runs: Path, measure: Measure) -> None:
    normal, raw = measure(runs / "two", *PARTS), measure(runs / "two", *PARTS, *RAW)
    assert all(normal[f"test/{key}"] != raw[f"test/{key}"] for key in ("part_nmi", "foreground_iou", "keypoint_error"))
    some = measure(runs / "two", *PARTS, "--limit", "7")
    assert some["images"] == some["fitted"]["images"] == 7 and some["test/count/keypoints"] == 35
    assert measure(runs / "two", "--metrics", "parts")["fitted"] is None


def test_a_plain_vit_has_no_parts(
    runs: Path, measure: Measure, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not named(measure(runs / "plain")) & (KEYS | PIXELS)
    for metric in PARTS[1:]:
        line = fails(["--run", str(runs / "plain"), "--metrics", metric], monkeypatch, capsys)
        assert f"metric '{metric}': this model has no part maps; drop it from --metrics" in line


def test_the_protocol_on_cub(runs: Path, measure: Measure) -> None:
    results = measure(runs / "cub", *PARTS)
    assert named(results) == KEYS
    assert results["fitted"]["images"] == 32  # 36 in training, 4 of them held out
    assert results["test/count/keypoints"] == 12 * 5
    assert measure(runs / "cub", *PARTS, "--data.val_fraction", "0")["fitted"]["images"] == 36


def test_on_other_backgrounds_the_fit_is_on_the_published_images(
    runs: Path,
    measure: Measure,
    birds: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Training images on the other backgrounds may be missing, the published ones must exist."""
    root = tmp_path / "CUB_200_2011"
    shutil.copytree(birds / "CUB_200_2011", root)
    where = (*PARTS, "--data.root", str(root), "--data.image_folder", WATERBIRDS)
    whole = measure(runs / "cub", *where)
    for split, word in (line.split() for line in (root / "train_test_split.txt").read_text().splitlines()):
        if word == "1":
            path = dict(line.split() for line in (root / "images.txt").read_text().splitlines())[split]
            (root / WATERBIRDS / path).unlink()
            missing = root / "images" / path
    assert repr(values(measure(runs / "cub", *where))) == repr(values(whole))
    missing.unlink()
    line = fails(["--run", str(runs / "cub"), *where], monkeypatch, capsys)
    assert f"--metrics: keypoints must be fitted on the training split: {missing} is missing" in line


def test_part_maps_of_a_split(
    runs: Path, measure: Measure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The example of docs/parts.md reads what was saved; interventions apply to it."""
    monkeypatch.chdir(tmp_path)
    measure(runs / "two", "--save-part-maps", "maps.h5")
    predicted = pd.read_csv("out/predictions.csv")
    assert "part maps: maps.h5" in capsys.readouterr().out
    page = (ROOT / "docs" / "parts.md").read_text()
    (example,) = re.findall(r"```python\n(# read_maps.py\n.*?)```", page, re.DOTALL)
    exec(compile(example, "read_maps.py", "exec"), {})
    assert capsys.readouterr().out.count("% in parts") == 12
    measure(runs / "two", "--save-part-maps", "without.h5", "--remove-parts", "0", "--limit", "5")
    with h5py.File("maps.h5") as file, h5py.File("without.h5") as other:
        assert file["paths"].asstr()[:].tolist() == predicted["path"].tolist()
        assert file["predicted"][:].tolist() == predicted["predicted"].tolist()
        assert file["group"][:].tolist() == predicted["group"].tolist()
        maps, mask = file["part_maps"][:], file["mask"][:]
        assert maps.shape == (12, 4, 4, 4) and np.allclose(maps.astype(float).sum(1), 1, atol=2e-3)
        lead = maps[:, :3].max(1).astype(float) - maps[:, 3]
        # float16 rounds close decisions away; without a foreground patch the best one stays.
        clear = (abs(lead) > 1e-3) & (lead > 0).any((1, 2), keepdims=True)
        assert np.array_equal(mask[clear], lead[clear] > 0) and 0 < mask[clear].mean() < 1
        assert (mask[~(lead > -1e-3).any((1, 2))].sum((1, 2)) == 1).all()
        assert json.loads(file.attrs["source"])["remove_parts"] == [] and len(other["mask"]) == 5
        assert json.loads(other.attrs["source"])["remove_parts"] == [0]
        rows = [file["paths"].asstr()[:].tolist().index(path) for path in other["paths"].asstr()]
        left, found = mask[rows] & (maps[rows].argmax(1) != 0), other["mask"][:]
        some = left.any((1, 2))
        assert some.any() and np.array_equal(found[some], left[some]) and (found[~some].sum((1, 2)) <= 1).all()
    for arguments in (["--run", str(runs / "plain")], ["--run", str(runs / "two"), "--leave-one-part-out"]):
        assert "--save-part-maps" in fails([*arguments, "--save-part-maps", "no.h5"], monkeypatch, capsys)
    assert not Path("no.h5").exists()
