"""prepare_siim_acr.py: sets, masks, files left out, and continuing after a kill."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import prepare_siim_acr as script
from datasets.formats.dicom import read_dicom
from tests.datasets import radiographs
from tests.datasets.radiographs import PATIENT, image_id, smooth, source_of, write_archive, write_dicom, write_tubes

ROOT = Path(__file__).parents[2]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    root = tmp_path / "siim"
    write_archive(root, count=14)
    return root


def run(root: Path, *more: str, tubes: str = "tubes.pkl") -> None:
    script.main(["--pkl_file_path", str(root / tubes), "--root_dir", str(root), "--workers", "1", *more])


def numbers(folder: Path) -> list[int]:
    return sorted(int(path.stem.rpartition(".")[2]) for path in folder.glob("*.dcm"))


def layout(out: Path) -> dict[str, list[int]]:
    return {f"{name}/{label}": numbers(out / name / label) for name in script.SETS for label in "01"}


def report(out: Path) -> dict[str, str]:
    with (out / "report.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["file", "reason"]
    assert len({tuple(row) for row in rows}) == len(rows) == len((out / "report.csv").read_text().splitlines())
    return dict(rows[1:])


def mask_of(out: Path, number: int) -> np.ndarray:
    with Image.open(out / "all_masks" / f"{image_id(number)}.png") as image:
        assert image.mode == "L"
        return np.asarray(image)


def snapshot(out: Path) -> dict[str, tuple[int, bytes]]:
    """Every file written, with its inode (a copy made again would be another) and content."""
    paths = [path for name in (*script.SETS, "all_masks") for path in (out / name).rglob("*") if path.is_file()]
    return {str(path.relative_to(out)): (path.stat().st_ino, path.read_bytes()) for path in paths}


def test_which_image_is_in_which_set(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 0..7, odd ones are positive and 2, 3, 6, 7 show a tube; 8..13 are not in the table."""
    run(archive)
    assert layout(archive) == {
        "train_set/0": [8, 10, 12], "train_set/1": [9, 11, 13],
        "full_test_set/0": [0, 2, 4, 6], "full_test_set/1": [1, 3, 5, 7],
        "robust_test_set/0": [2, 6], "robust_test_set/1": [1, 5],
        "non_robust_test_set/0": [0, 4], "non_robust_test_set/1": [3, 7],
    }  # fmt: skip
    assert report(archive) == {}
    said = " ".join(capsys.readouterr().out.split())
    assert "6 in train_set, 8 in full_test_set, 4 in robust_test_set, 4 in non_robust_test_set" in said
    copy = archive / "full_test_set/1" / f"{image_id(1)}.dcm"
    assert np.array_equal(read_dicom(copy), read_dicom(source_of(archive, 1)))


def test_masks_run_down_the_columns_and_join_all_rows(archive: Path) -> None:
    run(archive)
    wanted = np.zeros((48, 48), np.uint8)
    wanted[5:15, 2:4] = 255
    assert np.array_equal(mask_of(archive, 3), wanted)
    wanted[5:15, 30:32] = 255
    assert np.array_equal(mask_of(archive, 1), wanted)
    assert not mask_of(archive, 2).any()
    assert len(list((archive / "all_masks").iterdir())) == 14


def test_the_published_first_row(archive: Path) -> None:
    run(archive, "--first-row")
    assert np.array_equal(mask_of(archive, 1), mask_of(archive, 3))


@pytest.mark.parametrize("ending", ["json", "csv"])
def test_other_tables_of_tubes_give_the_same(archive: Path, tmp_path: Path, ending: str) -> None:
    run(archive)
    write_tubes(archive / f"tubes.{ending}", {image_id(number): number // 2 % 2 for number in range(8)})
    run(archive, "--out", str(tmp_path / "other"), tubes=f"tubes.{ending}")
    assert layout(tmp_path / "other") == layout(archive)


def test_again_changes_nothing(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(archive)
    before = snapshot(archive)
    monkeypatch.setattr(script, "read_dicom", pytest.fail)
    run(archive)
    assert snapshot(archive) == before


def test_it_goes_on_where_it_stopped(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, count = script.read_dicom, Counter[str]()

    def stops(path: Path) -> np.ndarray:
        count["read"] += 1
        if count["read"] == 6:
            raise KeyboardInterrupt
        return read(path)

    monkeypatch.setattr(script, "read_dicom", stops)
    with pytest.raises(SystemExit) as caught:
        run(archive)
    assert caught.value.code == 130
    started = snapshot(archive)
    assert 5 <= len(started) < 28
    half = archive / "all_masks" / f".{image_id(9)}.png.1.tmp"
    half.write_bytes(b"half")
    run(archive)
    assert count["read"] == 6 + 14 - 5, "what was done is not done again"
    assert not half.exists()
    assert {name: snapshot(archive)[name] for name in started} == started
    assert sum(map(len, layout(archive).values())) == 6 + 8 + 4 + 4


def test_what_is_left_out(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = source_of(archive, 1).read_bytes()
    source_of(archive, 1).write_bytes(data[: len(data) // 2])
    write_dicom(source_of(archive, 3), np.zeros((2, 48, 48), np.uint8), NumberOfFrames=2)
    write_dicom(source_of(archive, 8), smooth(8), PixelData=None)
    source_of(archive, 9).write_bytes(b"nothing")
    source_of(archive, 10).unlink()
    write_dicom(source_of(archive, 99), smooth(99))
    twin = archive / "dicom-images-train" / "z" / "z" / source_of(archive, 0).name
    twin.parent.mkdir(parents=True)
    shutil.copy(source_of(archive, 0), twin)
    text = (archive / "train-rle.csv").read_text()
    (archive / "train-rle.csv").write_text(text.replace(f"{image_id(5)}, 101 10 38 10", f"{image_id(5)}, 101 10 38"))
    (archive / "train-rle.csv").write_text((archive / "train-rle.csv").read_text() + f"{image_id(13)}, 2300 5\n")
    run(archive)
    reasons = {int(name.rpartition(".dcm")[0].rpartition(".")[2]): reason for name, reason in report(archive).items()}
    patterns = {
        0: "its image id is also that of", 1: "no pixels (none stored, or the file is truncated)",
        3: "2 frames where a radiograph has one", 5: "its mask in train-rle.csv: its runs are not pairs",
        8: "no pixels", 9: "not a DICOM file", 10: "named in train-rle.csv, but not in dicom-images-train",
        13: "its mask in train-rle.csv: its runs end outside the image", 99: "not in train-rle.csv",
    }  # fmt: skip
    assert reasons.keys() == patterns.keys()
    assert all(patterns[number] in reason for number, reason in reasons.items())
    assert layout(archive)["full_test_set/1"] == [7] and layout(archive)["train_set/1"] == [11]
    said = "".join(capsys.readouterr())
    assert "9 files left out: see" in said and PATIENT not in said + (archive / "report.csv").read_text()
    write_dicom(source_of(archive, 9), smooth(9))
    run(archive)
    assert layout(archive)["train_set/1"] == [9, 11] and len(report(archive)) == 8, "a restored file is taken up"


@pytest.mark.slow
def test_several_processes_give_the_same(archive: Path, tmp_path: Path) -> None:
    run(archive)
    run(archive, "--workers", "3", "--out", str(tmp_path / "other"))
    mine, other = snapshot(archive), snapshot(tmp_path / "other")
    assert {name: content for name, (_, content) in mine.items()} == {
        name: content for name, (_, content) in other.items()
    }


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on(tmp_path: Path) -> None:
    """SIGKILL to the main process: its workers end too, every file is whole, and the next run completes the set."""
    root = tmp_path / "siim"
    write_archive(root, count=150)
    arguments = ["--pkl_file_path", str(root / "tubes.pkl"), "--root_dir", str(root), "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "prepare_siim_acr.py"), *arguments], stdout=subprocess.PIPE, text=True
    )
    masks = root / "all_masks"
    while not (masks.is_dir() and any(masks.glob("*.png"))):
        assert process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)  # the pipe closes when the last worker has gone
    started = snapshot(root)
    assert 0 < len(started) < 150 + 142 + 16
    for path in masks.glob("[!.]*.png"):
        with Image.open(path) as image:
            image.load()
    run(root)
    assert len(snapshot(root)) == 150 + 142 + 16
    assert [path for path in root.rglob("*.tmp")] == []
    assert {name: value for name, value in snapshot(root).items() if name in started}.items() >= {
        name: value for name, value in started.items() if not name.rpartition("/")[2].startswith(".")
    }.items()


def line_of(capsys: pytest.CaptureFixture[str], root: Path, *more: str, tubes: str = "tubes.pkl") -> str:
    """Its error line; it exits with code 2."""
    with pytest.raises(SystemExit) as caught:
        run(root, *more, tubes=tubes)
    assert caught.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_other_inputs_for_the_same_folder(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Otherwise an image that becomes a test image would stay in the training set."""
    run(archive)
    before = snapshot(archive)
    assert "from another choice of rows (--first-row); give a new --out" in line_of(capsys, archive, "--first-row")
    write_tubes(archive / "more.csv", {image_id(number): 0 for number in range(10)})
    assert "from another table of tubes" in line_of(capsys, archive, tubes="more.csv")
    radiographs.write_rows(archive, [(image_id(number), "-1") for number in range(14)])
    assert "from another train-rle.csv" in line_of(capsys, archive)
    (archive / "prepared.json").write_text("[1]")
    assert "was prepared from another" in line_of(capsys, archive)
    (archive / "prepared.json").unlink()
    assert "train_set was not written by this script" in line_of(capsys, archive)
    assert snapshot(archive) == before


def no_images(root: Path) -> None:
    shutil.rmtree(root / "dicom-images-train")


def all_broken(root: Path) -> None:
    for path in root.rglob("*.dcm"):
        path.write_bytes(b"")


def other_columns(root: Path) -> None:
    (root / "train-rle.csv").write_text("ImageId,Runs\na,-1\n")


def an_empty_cell(root: Path) -> None:
    (root / "train-rle.csv").write_text("ImageId, EncodedPixels\na,\n")


def strangers(root: Path) -> None:
    write_tubes(root / "tubes.pkl", {"x": 1})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "train-rle.csv").unlink(), "siim has no train-rle.csv; give the folder of Kaggle's"),
        (lambda root: (root / "tubes.pkl").unlink(), "--pkl_file_path: cannot read"),
        (no_images, "--root_dir: no dicom-images-train/*/*/*.dcm in"),
        (all_broken, "no image could be prepared;"),
        (
            other_columns,
            "train-rle.csv: no column EncodedPixels; its header must have ImageId, EncodedPixels or fname, mask",
        ),
        (an_empty_cell, "train-rle.csv line 2: column EncodedPixels is empty"),
        (strangers, "tubes.pkl has no image of train-rle.csv"),
    ],
)
def test_one_line_for_bad_input(archive: Path, capsys: pytest.CaptureFixture[str], spoil: Any, message: str) -> None:
    spoil(archive)
    assert message in line_of(capsys, archive)


def test_wrong_flags(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--workers is 0; it must be at least 1" in line_of(capsys, archive, "--workers", "0")
    assert "--root_dir: no folder" in line_of(capsys, archive, "--root_dir", str(archive / "none"))
    assert "--out: cannot write to" in line_of(capsys, archive, "--out", str(archive / "tubes.pkl" / "x"))


def test_a_full_disk_is_one_line(archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    write = script.write_atomic

    def full(path: Path, content: str | bytes) -> Path:
        if path.suffix == ".png":
            raise script.UserError(f"cannot write {path}: No space left on device")
        return write(path, content)

    monkeypatch.setattr(script, "write_atomic", full)
    assert "No space left on device" in line_of(capsys, archive)
    assert not any(layout(archive).values()), "no image without its mask"
