"""commands.prepare_waterbirds: from every kind of source to a data set that the reader opens."""

import csv
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets import DataConfig, load_split
from datasets.formats.images import read_image, read_mask
from datasets.readers.cub import Cub
from datasets.readers.waterbirds import Waterbirds
from datasets.types import SPLITS
from tests.commands.composing import compose, in_folders, listed
from tests.datasets.composition.photographs import (
    SOURCES,
    disc,
    photograph,
    save,
    save_cutout,
    write_sources,
    write_table,
)

IMAGES = Path("CUB_200_2011/waterbird_complete95_forest2water2")


def groups(root: Path) -> dict[str, list[int]]:
    """Images of each group, as the reader sees them."""
    counts = {split: Counter(Waterbirds(DataConfig(root=str(root)), split).groups) for split in SPLITS}
    return {split: [count[group] for group in range(4)] for split, count in counts.items()}


def rows(root: Path) -> list[dict[str, str]]:
    with open(root / IMAGES / "metadata.csv") as file:
        return list(csv.DictReader(file))


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_lists(sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = compose(tmp_path / "new" / "birds", *listed(sources, "--correlation", 0.8))
    assert groups(out) == {"train": [8, 2, 2, 8], "val": [2, 2, 2, 2], "test": [3, 3, 3, 3]}
    assert "20 train, 8 val, 12 test images" in capsys.readouterr().out
    assert [path.name for path in out.parent.iterdir()] == ["birds"]
    table = rows(out)
    expected = ["img_id", "img_filename", "y", "split", "place", "place_filename", "object_filename"]
    assert list(table[0]) == expected and len(table) == 40
    for row in table:
        split = SPLITS[int(row["split"])]
        assert (sources / "objects" / row["object_filename"]).stem.startswith(split)
        assert (sources / "backgrounds" / row["place_filename"]).stem.startswith(split)
        assert row["place_filename"].startswith(("land", "water")[int(row["place"])])
        assert row["object_filename"].startswith(("landbird", "waterbird")[int(row["y"])])
    readme = (out / "README.md").read_text()
    assert "| landbird on water | 2 | 2 | 3 |" in readme and "| --seed | 0 |" in readme
    most = max(Counter(row["place_filename"] for row in table).values())
    assert f"Most images of one object: 2; of one background: {most}." in readme
    assert "| water backgrounds | 4 | 2 | 3 |" in readme
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.width > 1000


def test_a_composed_set_is_read_for_training(sources: Path, tmp_path: Path) -> None:
    out = compose(tmp_path / "birds", *listed(sources, "--format", "png"))
    config = DataConfig(name="waterbirds", root=str(out), image_size=32)
    split = load_split(config, "test", train=False, seed=0)
    assert len(split) == 12 and split.info.group_fractions == (0.5, 0, 0, 0.5)
    sample = Waterbirds(config, "test").read(0)
    assert sample.mask is not None and sample.boxes is not None and sample.image.shape == (32, 32, 3)
    row_indices, columns = np.flatnonzero(sample.mask.any(1)), np.flatnonzero(sample.mask.any(0))
    assert sample.boxes.tolist() == [[columns[0], row_indices[0], columns[-1] + 1, row_indices[-1] + 1]]
    birds = Cub(DataConfig(root=str(out), image_folder=IMAGES.name), "test")
    assert len(birds) == 12 and birds.info.class_names[0] == "001.land_species_0"


def test_pairs_differ_in_their_background_only(sources: Path, tmp_path: Path) -> None:
    out = compose(tmp_path / "birds", *listed(sources, "--format", "png"))
    masks, pixels, places = {}, {}, {}
    for row in rows(out):
        mask = read_mask((out / "CUB_200_2011/segmentations" / row["img_filename"]).with_suffix(".png"))
        image = read_image(out / IMAGES / row["img_filename"])
        masks.setdefault(row["object_filename"], []).append(mask)
        pixels.setdefault(row["object_filename"], []).append(image)
        places.setdefault(row["object_filename"], []).append(row["place"])
    pairs = [name for name, each in places.items() if len(each) == 2]
    assert len(pairs) == 10
    for name in pairs:
        (first, second), (a, b) = masks[name], pixels[name]
        assert sorted(places[name]) == ["0", "1"] and np.array_equal(first, second)
        same = (a == b).all(-1)
        assert same[first].mean() > 0.7 and same[~first].mean() < 0.1


def test_the_same_bytes(tmp_path: Path, sources: Path) -> None:
    """Whatever the order of files on disk and in the lists; with another seed, other images."""
    other = write_sources(tmp_path / "again", order=-1)
    first, second = (compose(tmp_path / name, *listed(each)) for name, each in (("a", sources), ("b", other)))
    one, two = content(first), content(second)
    assert one.pop("README.md") != two.pop("README.md")  # it names the folders
    assert one == two
    third = content(compose(tmp_path / "c", *listed(sources, "--seed", 1)))
    assert all(third[name] != one[name] for name in one if name.endswith(".jpg") and name in third)


def test_another_correlation_leaves_val_and_test_as_they_are(tmp_path: Path, sources: Path) -> None:
    low, high = (compose(tmp_path / str(each), *listed(sources, "--correlation", each)) for each in (0.8, 1))
    files = content(low / IMAGES), content(high / IMAGES)
    held_out = [row["img_filename"] for row in rows(low) if row["split"] != "0"]
    assert len(held_out) == 20 and all(files[0][name] == files[1][name] for name in held_out)
    changed = [name for name in files[0] if name != "metadata.csv" and files[0][name] != files[1][name]]
    assert len(changed) == 4


def test_class_folders_with_alpha(folders: Path) -> None:
    out = compose(folders / "out", *in_folders(folders, "--eval-places", "balanced", "--train", 40))
    assert {split: sum(each) for split, each in groups(out).items()} == {"train": 40, "val": 2, "test": 4}
    assert {row["place_filename"].split("/")[0] for row in rows(out)} == {"land", "water"}
    assert len(Waterbirds(DataConfig(root=str(out)), "train").read(0).image) == 32


@pytest.mark.parametrize("where", ["parallel", "beside"])
def test_masks_in_files(where: str, folders: Path) -> None:
    """The same images as with an alpha channel of those values, whatever the files' ending."""
    with_alpha = compose(folders / "alpha", *in_folders(folders, "--format", "png"))
    masks = folders / ("masks" if where == "parallel" else "plain")
    for path in sorted((folders / "objects").rglob("*.png")):
        name = path.relative_to(folders / "objects")
        with Image.open(path) as image:
            (folders / "plain" / name).parent.mkdir(parents=True, exist_ok=True)
            image.convert("RGB").save((folders / "plain" / name).with_suffix(".bmp"))
            save(masks / name, np.asarray(image.getchannel("A")))
    flags = ("--masks", masks, *in_folders(folders, "--format", "png"))
    replaced = [folders / "plain" if each == folders / "objects" else each for each in flags]
    out = compose(folders / "out", *replaced)
    first, second = content(with_alpha), content(out)
    pixels = [name for name in first if name.endswith(".png")]
    assert len(pixels) > 30 and all(first[name] == second[name] for name in pixels)


def test_labels_by_folder_names(folders: Path) -> None:
    (folders / "objects/Land").mkdir()
    (folders / "objects/waterbird").mkdir()
    (folders / "objects/hen house").rename(folders / "objects/Land/hen")
    (folders / "objects/gull").rename(folders / "objects/waterbird/gull")
    flags = [each for each in in_folders(folders) if each not in ("--labels", folders / "labels.txt")]
    table = rows(compose(folders / "out", *flags))
    assert {(row["img_filename"].split("/")[0], row["y"]) for row in table} == {("hen", "0"), ("gull", "1")}


def write_cub(root: Path) -> Path:
    """Four species of CUB with masks of five levels, and the categories of Places365."""
    names = ("004.Groove_billed_Ani", "087.Mallard", "102.Western_Wood_Pewee", "200.Common_Yellowthroat")
    stems = [f"{name}/{name[4:]}_{i:04d}" for name in names for i in range(6)]
    for seed, stem in enumerate(stems):
        save(root / "CUB_200_2011/images" / f"{stem}.jpg", photograph(seed)[:40])
        save(root / "CUB_200_2011/segmentations" / f"{stem}.png", (disc()[:40] * 5).astype(np.uint8) * 51)
    base = root / "CUB_200_2011"
    (base / "images.txt").write_text("".join(f"{i} {stem}.jpg\n" for i, stem in enumerate(stems, start=1)))
    (base / "train_test_split.txt").write_text("".join(f"{i} {int(i % 6 < 4)}\n" for i in range(1, len(stems) + 1)))
    for number, category in enumerate(("b/bamboo_forest", "f/forest/broadleaf", "o/ocean", "l/lake/natural")):
        for i in range(3):
            save(root / "places" / category / f"{i:08d}.jpg", photograph(1000 + 10 * number + i))
    return root


def test_the_published_recipe(tmp_path: Path) -> None:
    """Species, splits, sizes, names and places as published."""
    write_cub(tmp_path)
    places = ("--places", tmp_path / "places")
    out = compose(tmp_path / "out", "--preset", "waterbirds", "--objects", tmp_path / "CUB_200_2011", *places)
    table = {row["img_filename"]: row for row in rows(out)}
    assert {name.split("/")[0]: row["y"] for name, row in table.items()} == {
        "004.Groove_billed_Ani": "0", "087.Mallard": "1", "102.Western_Wood_Pewee": "1", "200.Common_Yellowthroat": "0",
    }  # fmt: skip
    assert len(table) == 24 and groups(out)["test"] == [2, 2, 2, 2]
    assert {row["place_filename"].rpartition("/")[0] for row in table.values()} <= {
        "b/bamboo_forest", "f/forest/broadleaf", "o/ocean", "l/lake/natural",
    }  # fmt: skip
    name = "087.Mallard/Mallard_0004.jpg"
    original = read_image(tmp_path / "CUB_200_2011/images" / name)
    composed, inside = read_image(out / IMAGES / name), disc()[:40] == 1
    assert composed.shape == original.shape == (40, 48, 3)
    difference = np.abs(composed.astype(int) - original)
    assert difference[inside].mean() < 20 and difference[disc()[:40] == 0].mean() > 50
    (tmp_path / "labels.txt").write_text("land Western_Wood_Pewee\n")
    flags = ("--preset", "waterbirds", "--objects", tmp_path, *places, "--labels", tmp_path / "labels.txt")
    corrected = compose(tmp_path / "corrected", *flags)
    assert {row["y"] for row in rows(corrected) if "Pewee" in row["img_filename"]} == {"0"}


def test_places_in_the_small_version(tmp_path: Path) -> None:
    write_cub(tmp_path)
    small = tmp_path / "small"
    for category in ("b/bamboo_forest", "f/forest/broadleaf", "o/ocean", "l/lake/natural"):
        shutil.copytree(tmp_path / "places" / category, small / category[2:].replace("/", "-"))
    flags = ("--preset", "waterbirds", "--objects", tmp_path, "--places", small)
    table = rows(compose(tmp_path / "out", *flags))
    assert "lake-natural" in {row["place_filename"].partition("/")[0] for row in table}


def test_files_can_be_left_out(sources: Path, tmp_path: Path) -> None:
    left_out = [f"{kind}bird/{kind}_species_0/train_0.png" for kind in ("land", "water")] + ["land/train_0.png"]
    (tmp_path / "exclude.txt").write_text("\n".join(left_out))
    table = rows(compose(tmp_path / "out", *listed(sources, "--exclude", tmp_path / "exclude.txt")))
    assert len(table) == 38
    assert not {row["object_filename"] for row in table} & set(left_out)
    assert "land/train_0.png" not in {row["place_filename"] for row in table}


def test_a_list_without_species(tmp_path: Path) -> None:
    """The class is the file's folder; a file in no folder is named by its kind."""
    sources = write_sources(tmp_path / "sources")
    names = [f"{kind}{i}" for kind in "ab" for i in range(8)]
    for i, name in enumerate(names):
        save_cutout(tmp_path / f"{name}.png", seed=i)
        save_cutout(tmp_path / "c" / f"{name}.png", seed=100 + i)
    table = [(f"{name}.png", int(name[0] == "b")) for name in names] + [(f"c/{name}.png", 1) for name in names]
    given = write_table(tmp_path / "mine.csv", ("file", "y"), table)
    found = rows(compose(tmp_path / "out", *listed(sources, "--objects", given)))
    assert {row["img_filename"].split("/")[0]: row["y"] for row in found} == {"land": "0", "water": "1", "c": "1"}


@pytest.mark.slow
@pytest.mark.skipif(not SOURCES.exists(), reason="no shared/data/real_birds")
def test_real_birds(tmp_path: Path) -> None:
    out = compose(tmp_path / "birds", *listed(SOURCES, "--correlation", 0.95))
    assert groups(out) == {"train": [407, 21, 21, 402], "val": [79, 79, 83, 83], "test": [143, 143, 144, 144]}
    split = load_split(DataConfig(name="waterbirds", root=str(out), image_size=28), "test", train=False, seed=0)
    assert len(split) == 574 and split.info.group_fractions == pytest.approx((407 / 851, 21 / 851, 21 / 851, 402 / 851))
    for image in out.rglob("segmentations/*/*.png"):
        assert 0.01 < read_mask(image).mean() < 0.9, image
