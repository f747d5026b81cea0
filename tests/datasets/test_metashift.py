"""MetaShift: classes, contexts as groups, the held-out validation, masks from a folder, and errors."""

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from sklearn.model_selection import train_test_split

from common.errors import UserError
from datasets import DataConfig, load_split
from datasets.readers.metashift import MetaShift
from tests.trees import metashift_tree, save_image

GROUPS = ("cat(bed)", "cat(shelf)", "cat(sofa)", "dog(bench)", "dog(bike)", "dog(shelf)")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return metashift_tree(tmp_path / "MetaShift")


def config(root: Path, **changes: object) -> DataConfig:
    return replace(DataConfig(name="metashift", root=str(root), val_fraction=0.2, image_size=32), **changes)  # type: ignore[arg-type]


def read(root: Path, split: str = "test", **changes: object) -> MetaShift:
    return MetaShift(config(root, **changes), split)


def names(data: MetaShift) -> list[str]:
    return [record.path.name for record in data.records]


def test_splits_classes_and_groups(root: Path) -> None:
    train, val, test = (read(root, split) for split in ("train", "val", "test"))
    for data in (train, val, test):
        assert data.info.class_names == ("cat", "dog") and data.info.group_names == GROUPS
        assert data.info.minority_groups is None, "the paper's worst group is the worse class"
    assert Counter(train.labels) == {0: 8, 1: 8} and Counter(val.labels) == {0: 2, 1: 2}
    assert Counter(test.groups) == {1: 5, 5: 5} and test.labels == [0] * 5 + [1] * 5
    assert len({*names(train), *names(val)}) == 20
    assert "held out: 0.2 of every class" in val.info.split_origin and test.info.split_origin == "published"


def test_validation_as_disc_takes_it(root: Path) -> None:
    """15 % of test/ by scikit-learn with seed 0, from the sorted cats and then the sorted dogs; train/ is whole."""
    for folder in ("cat/cat(shelf)", "dog/dog(shelf)"):
        for i in range(5, 20):
            save_image(root / "test" / folder / f"more_{i:02d}.JPEG")
    files = sorted((root / "test").rglob("*.JPEG"), key=lambda path: (path.parts[-3], path.name))
    rest, taken = train_test_split(files, train_size=0.15, random_state=0)[::-1]
    train, val, test = (read(root, split, variant="disc", val_fraction=0.0) for split in ("train", "val", "test"))
    assert [record.path for record in val.records] == sorted(taken) and len(val) == 6
    assert [record.path for record in test.records] == sorted(rest) and len(test) == 34
    assert len(train) == 20 and train.info.split_origin == "published"
    assert val.info.split_origin == "DISC's: 15 % of test/, drawn with seed 0 from the sorted files"
    assert test.info.split_origin == "DISC's: test/ without the 15 % for val" and val.info.group_names == GROUPS


def test_variants(root: Path) -> None:
    with pytest.raises(UserError, match=r"data\.variant is robust; metashift has the variants original, disc"):
        read(root, variant="robust")
    shutil.rmtree(root / "test" / "dog" / "dog(shelf)")
    save_image(root / "test" / "dog" / "dog(shelf)" / "a.jpg")
    with pytest.raises(UserError, match=r"/test has 6 images; data\.variant=disc needs at least 7"):
        read(root, variant="disc")


def test_a_record(root: Path) -> None:
    data = read(root, "train", val_fraction=0.0)
    by_path = {str(record.path.relative_to(root)): (record.label, record.group) for record in data.records}
    assert by_path["train/cat/cat(sofa)/cat(sofa)_3.JPEG"] == (0, 2)
    assert by_path["train/dog/dog(bike)/dog(bike)_0.JPEG"] == (1, 4)
    sample = data.read(0)
    assert sample.image.shape == (32, 32, 3) and (sample.label, sample.group) == (0, 0) and sample.mask is None


def test_the_held_out_images_depend_on_the_data_seed_alone(root: Path) -> None:
    assert names(read(root, "val")) == names(read(root, "val", batch_size=3))
    assert names(read(root, "val", seed=1)) != names(read(root, "val"))


def test_contexts_by_other_names_and_images_beside_them(root: Path) -> None:
    save_image(root / "test" / "cat" / "a.jpg")
    save_image(root / "test" / "cat" / "shelf" / "deep" / "b.PNG")
    save_image(root / "test" / "cat" / ".cache" / "c.jpg")
    (root / "test" / "cat" / "notes.txt").write_text("no image")
    data = read(root)
    assert data.info.group_names == ("cat", *GROUPS) and Counter(data.groups) == {0: 1, 2: 6, 6: 5}


def test_the_test_alone(root: Path) -> None:
    shutil.rmtree(root / "train")
    assert read(root).info.group_names == ("cat(shelf)", "dog(shelf)")


def test_masks_from_a_folder(root: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    for record in read(root).records:
        path = (masks / record.path.relative_to(root / "test")).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (32, 32), 255 * record.label).save(path)
    split = load_split(config(root, mask_folder=str(masks)), "test", train=False, seed=0)
    covered = [
        sample.mask.float().mean().item() for sample in map(split.__getitem__, range(10)) if sample.mask is not None
    ]
    assert covered == [0.0] * 5 + [1.0] * 5


def hide(root: Path) -> None:
    for path in (root / "test" / "dog" / "dog(shelf)").iterdir():
        path.rename(path.with_suffix(".txt"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda root: shutil.rmtree(root / "test"),
            r"test is missing; .* must be the folder that contains test/",
        ),
        (lambda root: shutil.rmtree(root / "train" / "dog"), r"train has the class folders cat, not cat, dog; make"),
        (lambda root: (root / "test" / "cow").mkdir(), r"train has the class folders cat, dog, not cat, cow, dog"),
        (hide, r"test/dog has no images .*; fill or remove the folder"),
    ],
)
def test_one_line_for_what_is_wrong(root: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(root)
    with pytest.raises(UserError, match=message) as caught:
        read(root)
    assert "\n" not in str(caught.value)


def test_fractions_and_splits(root: Path) -> None:
    with pytest.raises(UserError, match=r"data\.val_fraction is 0\.0; metashift's val split"):
        read(root, "val", val_fraction=0.0)
    with pytest.raises(UserError, match="no split 'valid'"):
        read(root, "valid")
    with pytest.raises(UserError, match=r"data\.root is empty; give the folder that contains train/ and test/"):
        MetaShift(DataConfig(name="metashift"), "test")
