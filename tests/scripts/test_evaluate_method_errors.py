"""Wrong use of `evaluate.py --method`: one line that names the flag, and no files written."""

from pathlib import Path

import pytest
import torch

from tests.scripts.method_runs import FAST, NANO, Measure, contents, fails

pytestmark = pytest.mark.slow
REFUSED: dict[str, tuple[list[str], str]] = {
    "another run": (["--run", "plain", *FAST], "weights"),
    "another split": (["--run", "two", "--split", "val", *FAST], "split"),
    "another stage": (["--run", "two", "--stage", "1", *FAST], "stage"),
    "other images": (["--run", "two", "--data.seed", "1", *FAST], "data.seed"),
    "a sample": (["--run", "two", "--limit", "4", *FAST], "other images"),
    "another method": (["--run", "two", "--method", "agcam"], "holds rollout, not agcam"),
    "another option": (["--run", "two", *FAST, "--head-fusion", "max"], "head_fusion"),
}


def test_maps_of_something_else_are_refused(
    measure: Measure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure("--run", "two", *FAST, "--save-maps", "maps.h5")
    before = contents(tmp_path)
    for arguments, named in REFUSED.values():
        assert named in fails([*arguments, "--maps", "maps.h5"], monkeypatch, capsys)
    assert contents(tmp_path) == before
    measure("--run", "two", "--checkpoint", "last", *FAST, "--maps", "maps.h5")  # one epoch: the same weights


TWO, PLAIN = ["--run", "two"], ["--run", "plain"]
MISTAKES: dict[str, tuple[list[str], str]] = {
    "nothing": ([], "--run"),
    "both": ([*TWO, *NANO, *FAST], "--model"),
    "no such run": (["--run", "nowhere", *FAST], "nowhere"),
    "unknown method": ([*TWO, "--method", "rolout"], "did you mean 'rollout'"),
    "no method": ([*TWO, "--method"], "--method"),
    "unknown metric": ([*TWO, "--method", "rollout", "--metrics", "acuracy"], "acuracy"),
    "unknown key": ([*TWO, *FAST, "--data.sise", "3"], "data.sise"),
    "bad option": ([*TWO, *FAST, "--head-fusion", "median"], "--head-fusion"),
    "ratio out of range": ([*TWO, *FAST, "--discard-ratio", "3"], "--discard-ratio"),
    "option of another method": ([*TWO, "--method", "agcam", "--head-fusion", "max"], "--head-fusion"),
    "cannot explain": ([*PLAIN, "--method", "rollout", "inherent"], "inherent"),
    "stage of a plain ViT": ([*PLAIN, *FAST, "--stage", "1"], "--stage"),
    "no such stage": ([*TWO, *FAST, "--stage", "3"], "--stage"),
    "no such split": ([*TWO, *FAST, "--split", "tset"], "--split"),
    "threshold": ([*TWO, *FAST, "--threshold", "1"], "--threshold"),
    "threshold nan": ([*TWO, *FAST, "--threshold", "nan"], "--threshold"),
    "threshold in words": ([*TWO, *FAST, "--threshold", "half"], "--threshold"),
    "edges": ([*TWO, *FAST, "--edges", "sharp"], "--edges"),
    "tolerance": ([*TWO, *FAST, "--tolerance", "-1"], "--tolerance"),
    "keep ratio": ([*TWO, *FAST, "--keep-ratio", "2"], "--keep-ratio"),
    "one step": ([*TWO, *FAST, "--removal-steps", "1"], "--removal-steps"),
    "no cell": ([*TWO, *FAST, "--removal-cell", "0"], "--removal-cell"),
    "cells that do not fit": ([*TWO, *FAST, "--removal-cell", "5"], "--removal-cell"),
    "fill": ([*TWO, *FAST, "--removal-fill", "pink"], "--removal-fill"),
    "no images": ([*TWO, *FAST, "--limit", "0"], "--limit"),
    "no images of a run": ([*TWO, "--limit", "0"], "--limit"),
    "fewer than none": ([*TWO, *FAST, "--limit", "-2"], "--limit"),
    "no maps": ([*TWO, *FAST, "--maps", "nowhere.h5"], "nowhere.h5"),
    "maps that are none": ([*TWO, *FAST, "--maps", "text.h5"], "text.h5"),
    "read and write": ([*TWO, *FAST, "--maps", "text.h5", "--save-maps", "text.h5"], "--save-maps"),
    "maps into a folder": ([*TWO, *FAST, "--save-maps", "folder"], "--save-maps"),
    "maps below a file": ([*TWO, *FAST, "--save-maps", "text.h5/maps.h5"], "--save-maps"),
    "out is a file": ([*TWO, *FAST, "--out", "text.h5"], "--out"),
    "out below a file": ([*TWO, *FAST, "--out", "text.h5/out"], "--out"),
    "out of a run": ([*TWO, "--out", "text.h5"], "--out"),
    "no run for masks": ([*PLAIN, *FAST, "--masks-for", "nowhere"], "nowhere"),
    "plain run for masks": ([*TWO, *FAST, "--masks-for", "plain"], "--masks-for"),
    "masks of another size": ([*PLAIN, *FAST, "--masks-for", "two", "--data.image_size", "40"], "model"),
    "masks without a two-stage run": ([*PLAIN, "--method", "rollout", "--metrics", "as_masks"], "--masks-for"),
    "through resizing without a mask": ([*PLAIN, *FAST, "--through-resize"], "--through-resize"),
    "weights of a run": ([*TWO, *FAST, "--weights", "head.safetensors"], "--weights"),
    "parts away": ([*TWO, *FAST, "--remove-parts", "1"], "--remove-parts"),
    "maps without method": ([*TWO, "--save-maps", "maps.h5"], "--save-maps"),
    "options of a method without one": ([*NANO, "--stage", "1"], "--stage"),
    "model of nobody": (["--model", "vit_nano_patch8", *FAST], "timm/NAME"),
    "unknown model": (["--model", "timm/vit_nanno", *FAST], "vit_nano"),
    "other classes": ([*NANO, "--weights", "none", *FAST], "1000 classes, data set synthetic has 2"),
    "no weights": ([*NANO, "--weights", "nowhere.pt", *FAST], "nowhere.pt"),
    "weights that are none": ([*NANO, "--weights", "text.h5", *FAST], "text.h5"),
    "weights of another": (["--model", "timm/vit_pico_patch8", "--weights", "head.safetensors", *FAST], "does not fit"),
    "size and patch": ([*NANO, "--weights", "none", *FAST, "--data.image_size", "36"], "--data.image_size"),
    "no data": ([*NANO, "--weights", "none", *FAST, "--data.name", "cub"], "data.root"),
}


@pytest.mark.parametrize(("arguments", "named"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line_and_leaves_nothing(
    arguments: list[str],
    named: str,
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in runs.iterdir():
        Path(path.name).symlink_to(path)
    Path("text.h5").write_text("mine")
    Path("folder").mkdir()
    before = contents(tmp_path), contents(runs)
    more = [] if "--out" in arguments else ["--out", "out"]
    assert named in fails([*arguments, *more], monkeypatch, capsys)
    assert (contents(tmp_path), contents(runs)) == before
    assert not Path("out").exists()


def test_a_failure_while_measuring_leaves_no_maps(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("engine.explanation.evaluator.run_method", fail)
    monkeypatch.chdir(tmp_path)
    error = fails(["--run", str(runs / "two"), *FAST, "--out", "out", "--save-maps", "maps.h5"], monkeypatch, capsys)
    assert "single image" in error and list(tmp_path.iterdir()) == []
