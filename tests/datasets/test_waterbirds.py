"""Waterbirds' published layout: its own splits and groups, CUB's annotations, and one clear line for every error."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from common.errors import UserError
from datasets.config import DataConfig
from datasets.formats.layout import WATERBIRDS
from datasets.readers.waterbirds import GROUPS, Waterbirds


def read(root: Path, split: str = "test", **changes: str) -> Waterbirds:
    return Waterbirds(DataConfig(name="waterbirds", root=str(root), **changes), split)  # type: ignore[arg-type]


def group_sizes(data: Waterbirds) -> list[int]:
    return np.bincount([record.group for record in data.records if record.group is not None], minlength=4).tolist()


def test_splits_are_the_files(layout: Path) -> None:
    train, val, test = (read(layout, split) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (40, 12, 16)
    names = [record.path.name for data in (train, val, test) for record in data.records]
    assert len(set(names)) == 68
    assert group_sizes(train) == [19, 1, 1, 19] and group_sizes(test) == [4, 4, 4, 4]


def test_groups_and_classes(layout: Path) -> None:
    data = read(layout)
    assert GROUPS == ("landbird on land", "landbird on water", "waterbird on land", "waterbird on water")
    assert data.info.class_names == ("landbird", "waterbird") and data.info.minority_groups == (1, 2)
    lines = (layout / "CUB_200_2011" / WATERBIRDS / "metadata.csv").read_text().splitlines()[1:]
    cells = {line.split(",")[1]: line.split(",") for line in lines}
    for index in range(len(data)):
        sample = data.read(index)
        _, _, y, split, place, _ = cells["/".join(Path(sample.path).parts[-2:])]
        assert (sample.label, sample.group, split) == (int(y), 2 * int(y) + int(place), "2")


def test_shares_of_the_groups_are_those_of_the_training_split(layout: Path) -> None:
    shares = (19 / 40, 1 / 40, 1 / 40, 19 / 40)
    assert [read(layout, split).info.group_fractions for split in ("train", "val", "test")] == [shares] * 3
    assert read(layout, "val").info.split_origin == "published"


def test_cub_annotations_are_matched_by_path_not_by_id(spoiled: Path) -> None:
    before = [read(spoiled).read(i) for i in range(16)]
    path = spoiled / WATERBIRDS / "metadata.csv"
    header, *rows = path.read_text().splitlines()
    renumbered = [f"{1000 - i},{row.split(',', 1)[1]}" for i, row in enumerate(rows)]
    path.write_text("\n".join([header, *renumbered]))
    for sample, again in zip(before, [read(spoiled).read(i) for i in range(16)], strict=True):
        assert sample.path == again.path
        assert sample.boxes is not None and np.array_equal(sample.boxes, again.boxes)  # type: ignore[arg-type]
        assert sample.keypoints is not None and np.array_equal(sample.keypoints, again.keypoints)  # type: ignore[arg-type]


def test_alone_without_cub(spoiled: Path) -> None:
    for path in list(spoiled.iterdir()):
        if path.name != WATERBIRDS:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    sample = read(spoiled).read(0)
    assert sample.mask is sample.keypoints is sample.boxes is None and sample.group is not None


def test_masks_without_the_index_files(spoiled: Path) -> None:
    (spoiled / "images.txt").unlink()
    sample = read(spoiled).read(0)
    assert sample.mask is not None and sample.boxes is sample.keypoints is None


def test_image_folder(layout: Path) -> None:
    data = read(layout, image_folder="images")
    assert data.records[0].path.parts[-3] == "images" and group_sizes(data) == [4, 4, 4, 4]


def test_a_byte_order_mark_and_blanks_in_the_header(spoiled: Path) -> None:
    path = spoiled / WATERBIRDS / "metadata.csv"
    path.write_text("\ufeff" + path.read_text().replace("img_id,img_filename", "img_id, img_filename", 1))
    assert len(read(spoiled)) == 16


def cell(line: int, column: int, value: str) -> Callable[[Path], None]:
    """Change one cell of metadata.csv; the header is line 1."""

    def apply(base: Path) -> None:
        path = base / WATERBIRDS / "metadata.csv"
        lines = [text.split(",") for text in path.read_text().splitlines()]
        lines[line - 1][column] = value
        path.write_text("\n".join(",".join(cells) for cells in lines))

    return apply


def unlink_image(base: Path) -> None:
    next((base / WATERBIRDS / "001.checked").glob("*.jpg")).unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            cell(1, 4, "spot"),
            r"metadata\.csv: no column place; its header must have img_id, img_filename, y, split, place",
        ),
        (cell(3, 2, "2"), r"metadata\.csv line 3: column y is 2; it must be 0, 1"),
        (cell(3, 2, "bird"), r"metadata\.csv line 3: column y is 'bird', not a whole number"),
        (cell(3, 3, "3"), r"metadata\.csv line 3: column split is 3; it must be 0, 1, 2"),
        (cell(3, 3, "train"), r"metadata\.csv line 3: column split is 'train'"),
        (cell(3, 4, "-1"), r"metadata\.csv line 3: column place is -1"),
        (cell(3, 4, ""), r"metadata\.csv line 3: column place is empty"),
        (cell(3, 0, "1"), r"metadata\.csv line 3: img_id 1 is already in line 2"),
        (cell(3, 1, "a/b.jpg"), r"images\.txt: no line for the image a/b\.jpg"),
        (unlink_image, r"001\.checked/.*\.jpg is missing"),
        (lambda base: (base / WATERBIRDS / "metadata.csv").write_text(""), r"metadata\.csv: no column img_id"),
        (
            lambda base: (base / WATERBIRDS / "metadata.csv").unlink(),
            r"data\.root: neither .* contains .*metadata",
        ),
    ],
)
def test_one_line_for_what_is_wrong(spoiled: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(spoiled)
    with pytest.raises(UserError, match=message) as caught:
        for split in ("train", "val", "test"):
            read(spoiled, split)
    assert "\n" not in str(caught.value)


def test_one_image_in_two_rows(spoiled: Path) -> None:
    path = spoiled / WATERBIRDS / "metadata.csv"
    first = path.read_text().splitlines()[1].split(",")[1]
    cell(9, 1, first)(spoiled)
    with pytest.raises(UserError, match=rf"line 9: img_filename {first} is already in line 2"):
        read(spoiled)


def test_an_empty_split(spoiled: Path) -> None:
    path = spoiled / WATERBIRDS / "metadata.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if line.split(",")[3] != "1"))
    with pytest.raises(UserError, match="the val split of data set 'waterbirds' is empty"):
        read(spoiled, "val")
