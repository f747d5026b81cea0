"""Arbitrary text in index files and configs gives a valid result or one line."""

import json
import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from commands.study_jobs import load_study
from common.errors import UserError
from common.plain_yaml import read_yaml
from datasets.config import DataConfig, SyntheticConfig
from datasets.formats.box_xml import read_box_file
from datasets.formats.coco import part_labels, read_coco
from datasets.formats.rle import decode_runs
from datasets.formats.tables import read_csv, read_spaced
from datasets.formats.tube_labels import read_tube_labels
from datasets.readers.cub import Cub
from datasets.readers.files import FileDataset
from datasets.readers.imagenet9 import read_mapping
from datasets.readers.waterbirds import Waterbirds
from datasets.synthetic.__main__ import write_cub_layout
from engine.run.command_line import load_config, parse_config
from engine.run.config import RunConfig
from engine.run.tracking import read_rows

NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([0, -1, 1, 2**31, 2**63, 10**400, 1e308]))
WORDS = st.one_of(
    st.text(max_size=12), NUMBERS.map(str), st.sampled_from(["", "../x", "/etc/passwd", "a\0b", "-1", "1e999"])
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=12,
)


def read_or_refuse(read: Callable[..., Any], *arguments: Any) -> Any:
    """The result, or None if the file is refused in one line."""
    try:
        return read(*arguments)
    except UserError as error:
        assert "\n" not in str(error)
        return None


def written(content: str | bytes, name: str, folder: Path) -> Path:
    path = folder / name
    path.write_bytes(content.encode(errors="surrogatepass") if isinstance(content, str) else content)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@given(st.one_of(st.text(), st.text("0123456789 -.", max_size=40)), st.integers(1, 9), st.integers(1, 9))
def test_run_lengths(text: str, height: int, width: int) -> None:
    try:
        mask = decode_runs([text], (height, width))
    except ValueError:
        return
    words = [] if text == "-1" else list(map(int, text.split()))
    assert mask.shape == (height, width) and mask.sum() == sum(words[1::2]) and sum(words) <= mask.size


@given(st.data())
def test_a_mask_survives_its_run_lengths(data: st.DataObject) -> None:
    """Any gaps and lengths, including 0, give those pixels down the columns."""
    height, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    words = data.draw(st.lists(st.integers(0, height * width), max_size=20).filter(lambda w: len(w) % 2 == 0))
    flat, end = [], 0
    for gap, length in zip(words[::2], words[1::2], strict=True):
        flat += list(range(end + gap, end + gap + length))
        end += gap + length
    if end > height * width:
        with pytest.raises(ValueError, match="outside the image"):
            decode_runs([" ".join(map(str, words))], (height, width))
        return
    mask = decode_runs([" ".join(map(str, words))], (height, width))
    assert np.flatnonzero(mask.T).tolist() == flat


@given(st.one_of(st.binary(), st.text(), st.text("a,\"\n\r'1 \t", max_size=60)))
def test_index_files_of_any_bytes(folder: Path, content: str | bytes) -> None:
    path = written(content, "a.txt", folder)
    for row in read_or_refuse(lambda: list(read_csv(path, ("a", "1")))) or []:
        assert set(row.cells) == {"a", "1"}
        read_or_refuse(row.integer, "a")
        read_or_refuse(row.file, "1")
    for row in read_or_refuse(lambda: list(read_spaced(path, ("a", "b")))) or []:
        value = read_or_refuse(row.number, "b")
        assert value is None or math.isfinite(value)


TINY = DataConfig(image_size=48, synthetic=SyntheticConfig(train_images=6, val_images=2, test_images=2))
INDICES = ("images.txt", "classes.txt", "image_class_labels.txt", "train_test_split.txt", "bounding_boxes.txt",
    "parts/parts.txt", "parts/part_locs.txt")  # fmt: skip
METADATA = "waterbird_complete95_forest2water2/metadata.csv"


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("birds") / "birds"
    write_cub_layout(TINY, out)
    return out / "CUB_200_2011"


def spoil_cell(data: st.DataObject, text: str, separator: str) -> str:
    """Replace one cell or one line."""
    lines = text.splitlines()
    number = data.draw(st.integers(0, len(lines) - 1))
    cells = lines[number].split(separator)
    cells[data.draw(st.integers(0, len(cells) - 1))] = data.draw(WORDS)
    lines[number] = data.draw(st.sampled_from([separator.join(cells), separator.join(cells), "", lines[0]]))
    return "\n".join(lines) + "\n"


def check_records(found: FileDataset | None, root: Path) -> None:
    """No index leads to images outside the data set."""
    for record in found.records if found else ():
        assert record.path.resolve().is_relative_to(root) and 0 <= record.label < found.info.num_classes
        assert record.boxes is None or np.isfinite(record.boxes).all()


@pytest.mark.slow
@settings(max_examples=30)
@given(st.data())
def test_an_index_of_cub(birds: Path, data: st.DataObject) -> None:
    path = birds / data.draw(st.sampled_from(INDICES))
    whole = path.read_text()
    try:
        written(spoil_cell(data, whole, " "), path.name, path.parent)
        for split in ("train", "val", "test"):
            check_records(read_or_refuse(Cub, DataConfig(root=str(birds)), split), birds)
    finally:
        path.write_text(whole)


@settings(max_examples=60)
@given(st.data())
def test_the_metadata_of_waterbirds(birds: Path, data: st.DataObject) -> None:
    path = birds / METADATA
    whole = path.read_text()
    try:
        written(spoil_cell(data, whole, ","), path.name, path.parent)
        for split in ("train", "val", "test"):
            check_records(read_or_refuse(Waterbirds, DataConfig(root=str(birds)), split), birds)
    finally:
        path.write_text(whole)


def test_the_spoilt_data_set_is_whole_again(birds: Path) -> None:
    assert len(Cub(DataConfig(root=str(birds)), "test")) == 2


BOX = (
    "<a><size><width>{0}</width><height>{1}</height></size><object><name>{2}</name>"
    "<bndbox><xmin>{3}</xmin><ymin>1</ymin><xmax>{4}</xmax><ymax>9</ymax></bndbox></object></a>"
)


@given(st.one_of(st.binary(), st.text(), st.lists(WORDS, min_size=5, max_size=5).map(lambda cells: BOX.format(*cells))))
def test_box_files(folder: Path, content: str | bytes) -> None:
    found = read_or_refuse(read_box_file, written(content, "a.xml", folder))
    if found is not None:
        assert np.isfinite(found.boxes).all() and (found.boxes[:, 2:] > found.boxes[:, :2]).all()


def coco(data: st.DataObject) -> dict[str, Any]:
    """A valid file of two parts with some values replaced."""
    outline = data.draw(
        st.sampled_from(
            [[[1, 1, 5, 1, 5, 5]], {"size": [6, 7], "counts": [2, 3, 37]}, {"size": [6, 7], "counts": "0f"}]
        )
    )
    note = {"id": 1, "image_id": 7, "category_id": 0, "area": 5, "bbox": [1, 1, 2, 2], "segmentation": outline}
    table: dict[str, Any] = {
        "categories": [{"id": 0, "name": "head"}, {"id": 1, "name": "tail"}],
        "images": [{"id": 7, "file_name": "n1_1.jpg", "height": 6, "width": 7}],
        "annotations": [note, note | {"category_id": 1, "id": 2}],
    }  # fmt: skip
    for _ in range(data.draw(st.integers(1, 3))):
        place: Any = table
        while True:
            key = data.draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
            if not (isinstance(place[key], dict | list) and place[key]) or data.draw(st.integers(0, 5)) == 0:
                break
            place = place[key]
        place[key] = data.draw(JSON)
    return table


@settings(max_examples=300)
@given(st.data())
def test_part_annotations(folder: Path, data: st.DataObject) -> None:
    path = written(json.dumps(coco(data)), "a.json", folder)
    found = read_or_refuse(read_coco, path)
    for image in found[0] if found else ():
        assert (folder / image.name).is_relative_to(folder) and ".." not in image.name
        if image.size_hw == (6, 7):  # the data set compares it with the image's size first
            labels = read_or_refuse(part_labels, image, path)
            assert labels is None or (labels.shape == (6, 7) and labels.min() >= -1 and labels.max() < len(found[1]))


@given(JSON)
def test_tables_in_json(folder: Path, content: Any) -> None:
    path = written(json.dumps(content), "file.json", folder)
    assert all(type(tube) is bool for tube in (read_or_refuse(read_tube_labels, path) or {}).values())
    assert len(read_or_refuse(read_mapping, path, 1000) or range(1000)) == 1000
    assert all(isinstance(row, dict) for row in read_rows(path))


def keys_of(kind: Any, prefix: str = "") -> list[str]:
    """Every dotted key."""
    config = kind()
    found = []
    for item in fields(kind):
        value = getattr(config, item.name)
        found += keys_of(type(value), f"{prefix}{item.name}.") if is_dataclass(value) else [prefix + item.name]
    return found


VALUES = st.one_of(JSON, st.sampled_from([math.nan, math.inf, -1, 0, 1e400, "none", "vit", [], {}, [32, 32], "1e3"]))


@pytest.mark.slow
@settings(max_examples=25)
@given(st.dictionaries(st.sampled_from(keys_of(RunConfig)), VALUES, min_size=1, max_size=3))
def test_configs_of_any_values(folder: Path, values: dict[str, Any]) -> None:
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *parents, name = key.split(".")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = value
    config = read_or_refuse(load_config, written(yaml.safe_dump(tree), "c.yaml", folder))
    assert config is None or isinstance(config, RunConfig)


@pytest.mark.slow
@settings(max_examples=25)
@given(st.one_of(st.binary(max_size=60), st.text(max_size=60), st.text("a:{}[]-&*! \n#'\"|>?%@", max_size=40)))
def test_configs_of_any_text(folder: Path, content: str | bytes) -> None:
    path = written(content, "c.yaml", folder)
    config = read_or_refuse(parse_config, [f"--config={path}"])
    assert config is None or isinstance(config, RunConfig)
    read_or_refuse(load_study, path)
    read_or_refuse(read_yaml, path)


@given(st.dictionaries(st.sampled_from(["title", "config", "rows", "seeds", "vary", "more_seeds", "about"]), JSON))
def test_studies_of_any_values(folder: Path, values: dict[str, Any]) -> None:
    path = written(yaml.safe_dump({"title": "t", "config": "c", "rows": {}} | values), "s.yaml", folder)
    study = read_or_refuse(load_study, path)
    assert study is None or list(study.pairs()) is not None
