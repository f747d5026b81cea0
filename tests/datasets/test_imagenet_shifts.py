"""ImageNet-1k by name, ImageNet-A, -R and -V2: which output means which class, and errors."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from timm.data import ImageNetInfo

from common.errors import UserError
from datasets import DATASETS, DataConfig, RawDataset
from tests.trees import OUTPUTS, WNIDS, class_tree, imagenet_tree, save_image


def read(name: str, root: Path, split: str = "test", **changes: object) -> RawDataset:
    return DATASETS[name](replace(DataConfig(name=name, root=str(root), val_fraction=0.25), **changes), split)  # type: ignore[arg-type]


def test_imagenet1k_has_all_labels_whatever_the_tree(tmp_path: Path) -> None:
    root = imagenet_tree(tmp_path)
    test = read("imagenet1k", root)
    assert test.info.num_classes == test.info.num_outputs == 1000 and test.info.class_of_output is None
    assert sorted(set(test.labels)) == list(OUTPUTS)
    assert test.info.class_names[0] == "tench, Tinca tinca" and test.info.name == "imagenet1k"
    assert read("imagenet", root).info.num_classes == 4, "any tree has the classes of its folders"
    by_label = {Path(test.read(i).path).parent.name: test.labels[i] for i in range(len(test))}
    assert by_label == dict(zip(WNIDS, OUTPUTS, strict=True))


def test_imagenet1k_refuses_other_folders(tmp_path: Path) -> None:
    root = imagenet_tree(tmp_path)
    for split in ("train", "val"):
        save_image(root / split / "dogs" / "a.jpg")
    with pytest.raises(UserError, match=r"val/dogs is not a class of ImageNet-1k; .*data\.class_names"):
        read("imagenet1k", root)


@pytest.mark.parametrize(("split", "count"), [("train", 24), ("val", 8), ("test", 8)])
def test_what_is_said_of_a_carved_split(tmp_path: Path, split: str, count: int) -> None:
    data = read("imagenet1k", imagenet_tree(tmp_path), split)
    assert len(data) == count
    assert (
        data.info.split_origin
        == {
            "train": "published, without what is held out for val",
            "val": "held out: 0.25 of every class of the published training split, data.seed 0",
            "test": "published",
        }[split]
    )


@pytest.mark.parametrize("name", ["imagenet_a", "imagenet_r"])
def test_the_classes_are_the_folders_there_are(name: str, tmp_path: Path) -> None:
    class_tree(tmp_path, WNIDS[1:], 2)
    (tmp_path / "README.txt").write_text("not a class")
    data = read(name, tmp_path)
    assert data.info.name == name and data.labels == [0, 0, 1, 1, 2, 2] and data.info.split_origin == "published"
    assert data.info.class_names == ("stingray", "English springer, English springer spaniel", "chain saw, chainsaw")
    assert data.info.num_outputs == 1000 and data.info.class_of_output is not None
    assert {o: c for o, c in enumerate(data.info.class_of_output) if c >= 0} == {6: 0, 217: 1, 491: 2}
    sample = data.read(5)
    assert (sample.label, sample.path) == (2, str(tmp_path / WNIDS[3] / f"{WNIDS[3]}_1.JPEG"))


def test_another_list_of_classes(tmp_path: Path) -> None:
    """A model of five classes in the order of their folders, not of the lines."""
    root, names = class_tree(tmp_path / "a", WNIDS[2:], 1), tmp_path / "five.txt"
    names.write_text("n09999999 last thing\n" + "".join(f"{wnid} {wnid[-1]} of five\n" for wnid in WNIDS))
    info = read("imagenet_a", root, class_names=str(names)).info
    assert info.class_of_output == (-1, -1, 0, 1, -1) and info.class_names == ("0 of five", "4 of five")
    names.write_text("n02102040 a\nn02102040 b\n")
    with pytest.raises(UserError, match=r"five.txt line 2: folder n02102040 is already"):
        read("imagenet_a", root, class_names=str(names))
    names.write_text("n02102040\n")
    with pytest.raises(UserError, match=r"five.txt line 1: 1 columns, not 2"):
        read("imagenet_a", root, class_names=str(names))


def test_v2_is_numbered_not_sorted(tmp_path: Path) -> None:
    data = read("imagenet_v2", class_tree(tmp_path, ("0", "10", "2", "999"), 1))
    assert data.labels == [0, 2, 10, 999] and data.info.class_of_output is None and data.info.num_outputs == 1000
    assert [Path(data.read(i).path).parent.name for i in range(4)] == ["0", "2", "10", "999"]
    known = ImageNetInfo()
    assert list(data.info.class_names) == [known.index_to_description(i) for i in range(1000)]


@pytest.mark.parametrize("name", ["imagenet_a", "imagenet_r", "imagenet_v2", "imagenet9"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_there_is_nothing_to_train_on(name: str, split: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"data set '{name}' has only a test split; train on imagenet1k"):
        read(name, class_tree(tmp_path, WNIDS, 1), split)


def empty(root: Path) -> None:
    shutil.rmtree(root)
    root.mkdir()


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("imagenet_a", lambda root: save_image(root / "cats" / "a.jpg"), r"cats is not a class of ImageNet-1k"),
        ("imagenet_r", empty, r"has no class folders"),
        ("imagenet_a", lambda root: (root / WNIDS[0] / f"{WNIDS[0]}_0.JPEG").unlink(), r"n01440764 has no images"),
        ("imagenet_v2", lambda root: None, r"n01440764: folders of ImageNet-V2 are numbered 0 to 999"),
        ("imagenet_v2", lambda root: [shutil.rmtree(root / w) for w in WNIDS] and save_image(root / "1000" / "a.png"),
         r"1000: folders of ImageNet-V2 are numbered 0 to 999"),
        ("imagenet_a", lambda root: shutil.rmtree(root), r"data\.root: no folder"),
    ],
)  # fmt: skip
def test_one_line_for_what_is_wrong(name: str, spoil: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    root = class_tree(tmp_path / "tree", WNIDS, 1)
    spoil(root)
    with pytest.raises(UserError, match=message) as caught:
        read(name, root)
    assert "\n" not in str(caught.value)


def test_a_broken_image_is_named_when_it_is_read(tmp_path: Path) -> None:
    root = class_tree(tmp_path, WNIDS, 1)
    broken = root / WNIDS[1] / f"{WNIDS[1]}_0.JPEG"
    broken.write_bytes(broken.read_bytes()[:100])
    data = read("imagenet_r", root)
    with pytest.raises(UserError, match=f"cannot read image .*{broken.name}"):
        data.read(1)
    assert data.read(2).label == 2
