"""The published tables of SIIM-ACR: masks by run lengths, and tubes."""

import shutil
from pathlib import Path

import pytest

from datasets.formats.rle import decode_runs
from datasets.formats.tube_labels import read_tube_labels
from prepare_siim_acr import read_runs
from tests.datasets.published_files import published
from tests.datasets.radiographs import image_id, write_archive


@pytest.mark.parametrize("header", ["ImageId, EncodedPixels", "ImageId,EncodedPixels", "fname,mask", "mask , fname"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_byte_order_mark_and_other_names_of_the_columns(tmp_path: Path, header: str, mark: str) -> None:
    """Copies of Kaggle's table that are passed on have other names and no blanks."""
    write_archive(tmp_path, count=4)
    table = tmp_path / "train-rle.csv"
    first, *rows = table.read_text().splitlines()
    assert first == "ImageId, EncodedPixels"
    if header.startswith("mask"):
        rows = [",".join(reversed(row.split(","))) for row in rows]
    wanted = read_runs(tmp_path, first_row=False)
    assert len(wanted) == 4 and len(wanted[image_id(1)]) == 2 and wanted[image_id(0)] == ("-1",)
    table.write_text(mark + "\n".join([header, *rows]), encoding="utf-8")
    assert read_runs(tmp_path, first_row=False) == wanted


@pytest.mark.parametrize(("name", "rows", "positive"), [("rle_rows.csv", 1500, None), ("train-rle-sample.csv", 10, 5)])
def test_published_tables(tmp_path: Path, name: str, rows: int, positive: int | None) -> None:
    """Every run length of real tables decodes to a mask of 1024 x 1024 pixels with as many pixels as the runs say."""
    shutil.copy(published(f"siim/{name}"), tmp_path / "train-rle.csv")
    found = read_runs(tmp_path, first_row=False)
    assert sum(map(len, found.values())) == rows
    masks = {key: runs for key, runs in found.items() if runs != ("-1",)}
    assert positive is None or len(masks) == positive
    for runs in list(masks.values())[::10]:
        mask = decode_runs(runs, (1024, 1024))
        covered = sum(sum(map(int, text.split()[1::2])) for text in runs)
        assert 0 < mask.sum() <= covered and (len(runs) > 1 or mask.sum() == covered)


def test_the_published_table_of_tubes() -> None:
    tubes = read_tube_labels(published("siim/cxr_tube_dict.pkl"))
    assert len(tubes) == 1951 and set(tubes.values()) == {True, False}
