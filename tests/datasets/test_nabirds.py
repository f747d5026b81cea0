"""NABirds: CUB's files with texts as ids, and classes that are the leaves of a hierarchy."""

from collections import Counter
from pathlib import Path

import pytest

from common.errors import UserError
from datasets.config import DataConfig
from datasets.readers.cub import NABirds
from tests.datasets.published import NABIRDS_PARTS, write_nabirds


def load(base: Path, split: str, **keys: float) -> NABirds:
    return NABirds(DataConfig(name="nabirds", root=str(base), val_fraction=0.25, **keys), split)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    return write_nabirds(tmp_path_factory.mktemp("data"))


def test_splits_and_classes(layout: Path) -> None:
    splits = {split: load(layout.parent, split) for split in ("train", "val", "test")}
    assert {split: Counter(data.labels) for split, data in splits.items()} == {
        "train": {0: 3, 1: 3, 2: 3}, "val": {0: 1, 1: 1, 2: 1}, "test": {0: 2, 1: 2, 2: 2}
    }  # fmt: skip
    info = splits["test"].info
    assert info.name == "nabirds" and info.part_names == NABIRDS_PARTS
    assert info.class_names == ("Common Eider (Adult male)", "Oak Titmouse", "Barn Owl"), "only those with images"
    found = {record.path for data in splits.values() for record in data.records}
    assert len(found) == 18 and found == set((layout / "images").rglob("*.jpg"))


def test_annotations_belong_to_their_image(layout: Path) -> None:
    names = [line.split()[1] for line in (layout / "images.txt").read_text().splitlines()]
    for data in (load(layout, "train"), load(layout, "test")):
        for index, record in enumerate(data.records):
            i = names.index("/".join(record.path.parts[-2:]))
            sample = data.read(index)
            assert sample.boxes is not None and sample.boxes.tolist() == [[i, 4, i + 20, 34]]
            assert sample.keypoints is not None and sample.label == i % 3
            for part, (x, y, visible) in enumerate(sample.keypoints.tolist()):
                assert (x, y, visible) == ((10 + part, i, 1) if (i + part) % 3 else (-1, -1, 0))


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("images", "{first} ", "{second} ", r"images\.txt line 2: id {second} is already in line 1"),
        ("image_class_labels", "{first} 295\n", "", r"image_class_labels\.txt: no line for id {first}, which"),
        ("image_class_labels", "{first} 295", "{first} 2", r"labels\.txt line 1: column class_id is 2; it must be one"),
        ("train_test_split", "{first} 1", "{second} 1", r"split\.txt line 2: id {second} is already in line 1"),
        ("bounding_boxes", "{first} 0 4 20 30", "{first} 0 4 x 30", r"boxes\.txt line 1: column width is 'x'"),
        ("bounding_boxes", "{first} 0 4 20 30", "{first} 0 4 20", r"boxes\.txt line 1: 4 columns, not 5"),
        ("parts/part_locs", "{first} 1 ", "{first} 0 ", r"part_locs\.txt line 2: part 0 of image {first} .* second"),
        ("parts/part_locs", "{first} 3 -1 -1 0\n", "", r"part_locs\.txt: image {first} has fewer than 4 parts"),
    ],
)  # fmt: skip
def test_errors_name_line_and_id(name: str, old: str, new: str, message: str, tmp_path: Path) -> None:
    base = write_nabirds(tmp_path)
    first, second = (line.split()[0] for line in (base / "images.txt").read_text().splitlines()[:2])
    path = base / f"{name}.txt"
    content, ids = path.read_text(), {"first": first, "second": second}
    assert old.format(**ids) in content
    path.write_text(content.replace(old.format(**ids), new.format(**ids), 1))
    with pytest.raises(UserError, match=message.format(**ids)):
        load(base, "test")


def test_rows_of_other_images_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = write_nabirds(tmp_path)
    index = base / "images.txt"
    index.write_text("".join(index.read_text().splitlines(keepends=True)[::-2]))
    whole, cut = (load(base, split) for split in ("train", "test"))
    assert len(whole) + len(load(base, "val")) + len(cut) == 9
    assert all(record.boxes[0, 0] % 2 for record in cut.records if record.boxes is not None)
    assert "9 of image_class_labels.txt" in caplog.text and "36 of parts/part_locs.txt" in caplog.text
