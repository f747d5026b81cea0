"""Index files that name files outside the data set, and paths that no file system takes."""

import json
from pathlib import Path

import pytest

from common.errors import UserError
from common.flags import Parser
from datasets.config import DataConfig
from datasets.formats.coco import read_coco
from datasets.readers.cub import Cub
from datasets.readers.voc import Voc2012
from datasets.readers.waterbirds import Waterbirds
from datasets.synthetic.__main__ import write_cub_layout
from engine.run.command_line import parse_config
from tests.datasets.conftest import TINY

OUTSIDE = ("../../../secret.jpg", "/secret.jpg", "001.x/../../../../secret.jpg", "a\0b.jpg", "é" * 200 + ".jpg")


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("paths") / "birds"
    write_cub_layout(TINY, out)
    return out / "CUB_200_2011"


def renamed(path: Path, column: int, separator: str, name: str) -> str:
    """Replace the file name in the second line of the index; return the old text."""
    whole = path.read_text()
    lines = whole.splitlines()
    cells = lines[1].split(separator)
    cells[column] = name
    path.write_text("\n".join([lines[0], separator.join(cells), *lines[2:]]) + "\n")
    return whole


@pytest.mark.parametrize("name", OUTSIDE)
def test_cub_and_waterbirds(name: str, birds: Path) -> None:
    for file, column, separator, kind in (
        ("images.txt", 1, " ", Cub), ("waterbird_complete95_forest2water2/metadata.csv", 1, ",", Waterbirds),
    ):  # fmt: skip
        whole = renamed(birds / file, column, separator, name)
        try:
            with pytest.raises(UserError, match=r"line 2: column \w+ is .*, which leaves its folder") as caught:
                [kind(DataConfig(root=str(birds)), split) for split in ("train", "val", "test")]
            assert "\n" not in str(caught.value)
        finally:
            (birds / file).write_text(whole)


@pytest.mark.parametrize("name", OUTSIDE)
def test_voc(name: str, tmp_path: Path) -> None:
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    (tmp_path / "ImageSets/Main/val.txt").write_text(name + "\n")
    with pytest.raises(UserError, match="column id is .*, which leaves its folder"):
        Voc2012(DataConfig(root=str(tmp_path)), "test")


@pytest.mark.parametrize("name", OUTSIDE)
def test_coco(name: str, tmp_path: Path) -> None:
    note = {
        "id": 1,
        "image_id": 7,
        "category_id": 0,
        "area": 5,
        "bbox": [1, 1, 2, 2],
        "segmentation": [[1, 1, 5, 1, 5, 5]],
    }
    image = {"id": 7, "file_name": name, "height": 6, "width": 7}
    table = {"categories": [{"id": 0, "name": "head"}], "images": [image], "annotations": [note]}
    (tmp_path / "train.json").write_text(json.dumps(table))
    with pytest.raises(UserError, match="leaves its folder"):
        read_coco(tmp_path / "train.json")


@pytest.mark.parametrize(
    ("key", "path"),
    [("out", "x" * 300), ("data.root", "é" * 200), ("model.weights", "a/" * 3000), ("model.init_from", "a\0b")],
)
def test_paths_that_no_file_system_takes(key: str, path: str) -> None:
    with pytest.raises(UserError, match=rf"{key} (is too long for a path|has a null character)"):
        parse_config([f"--{key}={path}"])
    parser = Parser()
    parser.add_argument("--run", type=Path)
    with pytest.raises(UserError, match="argument --run: the path (is too long|has a null)"):
        parser.parse_args(["--run", path])
    with pytest.raises(UserError, match="argument --run: the path is empty"):
        parser.parse_args(["--run", ""])
    assert parser.parse_args(["--run", "x" * 200]).run == Path("x" * 200)
