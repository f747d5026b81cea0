"""commands.prepare_waterbirds with wrong files and flags: one line, and nothing is written."""

import csv
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.commands.composing import compose, in_folders, listed
from tests.datasets.composition.photographs import photograph, save, save_cutout, write_sources, write_table


def error_of(capsys: pytest.CaptureFixture[str], out: Path, *flags: object) -> str:
    """The line that a command ends with; checks the exit code, and that it wrote nothing."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(SystemExit) as stopped:
        compose(out, *flags)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert stopped.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: "), lines
    assert sorted(out.parent.iterdir()) == before
    return lines[0]


def without_masks(folders: Path) -> None:
    for name in ("gull/0.png", "gull/1.png"):
        save(folders / "objects" / name, photograph(int(name[5])))


def empty_mask(folders: Path) -> None:
    save(folders / "objects/gull/3.png", np.zeros((48, 48, 4), np.uint8))


def loose_image(folders: Path) -> None:
    save_cutout(folders / "objects/x.png", seed=1)


def same_photograph(folders: Path) -> None:
    shutil.copy(folders / "objects/gull/3.png", folders / "objects/gull/copy.png")


def same_background(folders: Path) -> None:
    shutil.copy(folders / "land/0.jpg", folders / "water/copy.jpg")


def same_stem(folders: Path) -> None:
    shutil.copy(folders / "objects/gull/3.png", folders / "objects/gull/3.webp")


def few_backgrounds(folders: Path) -> None:
    for i in (0, 1):
        (folders / f"water/{i}.jpg").unlink()


def small_background(folders: Path) -> None:
    for i in range(4):
        save(folders / f"water/{i}.jpg", photograph(i, size=15))


def no_backgrounds(folders: Path) -> None:
    for path in (folders / "water").iterdir():
        path.unlink()


def unlabelled(folders: Path) -> None:
    (folders / "labels.txt").write_text("water gull\n")


def mistyped(folders: Path) -> None:
    (folders / "labels.txt").write_text("land hen house\nwater gull\nwater gul\n")


def strange_label(folders: Path) -> None:
    (folders / "labels.txt").write_text("land hen house\nair gull\n")


def broken_image(folders: Path) -> None:
    (folders / "water/1.jpg").write_bytes(b"no image")


def existing_output(folders: Path) -> None:
    (folders / "out").mkdir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_masks, r"gull/0\.png .*no transparent pixel.* \(and 1 more; .*: gull/0\.png, gull/1\.png\)"),
        (empty_mask, r"gull/3\.png: the mask is empty"),
        (loose_image, r"x\.png is in no class folder; move it to objects/CLASS/"),
        (same_photograph, r"gull/3\.png and .*gull/copy\.png are the same photograph; remove one"),
        (same_background, r"land/0\.jpg and .*water/copy\.jpg are of one photograph but differ in split or kind"),
        (same_stem, r"3\.png and .*3\.webp would have the same name 3; rename one"),
        (few_backgrounds, r"2 water backgrounds cannot be shared out to 3 splits; give at least 3"),
        (small_background, r"water/\d\.jpg: 15 x 15 pixels, enlarged 2\.13 .* \(and 3 more; .*\)"),
        (no_backgrounds, r"--water: no images .* in .*water; correct the path"),
        (unlabelled, r"class hen house has no label; give --labels with a line"),
        (mistyped, r"labels\.txt line 3: --objects has no class gul; correct the name"),
        (strange_label, r"labels\.txt line 2: label is 'air'; it must be land"),
        (broken_image, r"cannot read image .*1\.jpg"),
        (existing_output, r"out exists already"),
    ],
)  # fmt: skip
def test_wrong_files(
    change: Callable[[Path], None], message: str, folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(folders)
    assert re.search(message, error_of(capsys, folders / "out", *in_folders(folders)))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--places", "x"), "one of --land and --water, --places, or --backgrounds"),
        (("--placement", "original"), "--size needs --placement centred or random"),
        (("--object-size", 0.9, 0.6), "the smaller number first"),
        (("--object-size", 0.1, 0.2, 0.3), "one number or two"),
        (("--object-size", "nan"), "--object-size must be above 0"),
        (("--max-upscale", 0.5), "--max-upscale must be from 1 to 100"),
        (("--correlation", 1.5), "--correlation"),
        (("--val-fraction", 1), "--val-fraction must be above 0 and below 1"),
        (("--size", 8), "--size must be at least 16"),
        (("--preset", "waterbirds", "--placement", "random"), "has no images.txt; give --objects CUB_200_2011"),
        (("--split-by", "given"), "states no splits"),
        (("--objects", "missing"), "--objects: no folder missing"),
        (("--masks", "missing"), "--masks: no folder missing"),
        (("--land", "missing"), "--land: no folder missing"),
        (("--labels", "missing.txt"), "missing.txt is missing"),
        (("--exclude", "missing.txt"), "missing.txt is missing"),
    ],
)  # fmt: skip
def test_wrong_flags(
    flags: tuple[object, ...], message: str, folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in error_of(capsys, folders / "out", *in_folders(folders, *flags))


@pytest.mark.parametrize(
    ("table", "line", "message"),
    [
        ("objects", ("gone.png", 0, "land_species_0", "train"), "gone.png is missing"),
        ("objects", ("landbird/land_species_0/train_0.png", 0, "a", "test"), "is already in line"),
        ("objects", ("../x.png", 0, "a", "test"), "leaves its folder"),
        ("objects", ("x.png", 1, "../../a", "test"), "species is '../../a'; it must be a name without /"),
        ("objects", ("x.png", 1, "..", "test"), "species is '..'; it must be a name without /"),
        ("objects", ("x.png", 2, "a", "test"), "column y is 2; it must be 0, 1"),
        ("objects", ("x.png", 1, "a", "dev"), "split is 'dev'; it must be train, val, test"),
        ("backgrounds", ("gone.png", "land", "train"), "gone.png is missing"),
        ("backgrounds", ("x.png", "air", "train"), "kind is 'air'; it must be land"),
    ],
)
def test_wrong_lists(
    table: str, line: tuple[object, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = write_sources(tmp_path)
    with open(sources / f"{table}.csv", "a", newline="") as file:
        csv.writer(file).writerow(line)
    assert message in error_of(capsys, tmp_path / "out", *listed(sources))


def test_a_photograph_in_two_splits(sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open(sources / "backgrounds.csv") as file:
        lines = list(csv.reader(file))
    lines = [[str(sources / "backgrounds"), "", "", "photograph"]][:0] + [
        [*line, f"p{i // 4}"] for i, line in enumerate(lines[1:])
    ]
    (tmp_path / "list").symlink_to(sources / "backgrounds")
    given = write_table(tmp_path / "list.csv", ("file", "kind", "split", "photograph"), lines)
    flags = ("--objects", sources / "objects.csv", "--backgrounds", given, "--size", 32)
    assert "are of one photograph but differ" in error_of(capsys, tmp_path / "out", *flags)


def test_labels_with_a_list(sources: Path, folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = listed(sources, "--labels", folders / "labels.txt")
    assert "--labels contradicts --objects" in error_of(capsys, folders / "out", *flags)
