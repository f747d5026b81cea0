"""Tables of numbers: the values of a plain parser for every file, and its line for every wrong one."""

from pathlib import Path

import numpy as np
import pytest

from common.errors import UserError
from datasets.formats.number_table import NumberTable
from datasets.formats.tables import read_spaced

COLUMNS = ("id", "x", "visible")
GOOD = ["1 2.5 0", "2 -3 1", "3 0.1 1"]
CELLS = [
    "4 x 1", "4 1", "4", "4 1 2 3", "4 nan 1", "4 inf 1", "4 1e30 1", "4  NA 1", "4 True 1", "4 0x10 1", "4 1_0 1",
    '"4" 1 1', "4 '1' 1", "4,1,1", "4 1 1 #", "4 +1 1", "4 1e2 1", "4 .5 1.", "4\t1\t1 ", "  4 1 1", "   ", "", "# 1 1",
    "4 1 \x00", "4 1\x0c1", "4 1\u20281", "4 \u0661 1", "4 1 None", "4 1,5 1", "99999999 1 1",
]  # fmt: skip


@pytest.mark.parametrize("line", CELLS)
@pytest.mark.parametrize("place", [0, 2, 3])
def test_as_the_row_by_row_parser(tmp_path: Path, line: str, place: int) -> None:
    path = tmp_path / "table.txt"
    path.write_text("\n".join([*GOOD[:place], line, *GOOD[place:]]), encoding="utf-8")
    try:
        wanted = [[row.number(column) for column in COLUMNS] for row in read_spaced(path, COLUMNS)]
    except UserError as error:
        with pytest.raises(UserError) as caught:
            NumberTable(path, COLUMNS)
        assert str(caught.value) == str(error) and f"line {place + 1}: " in str(error)
    else:
        table = NumberTable(path, COLUMNS)
        assert np.array_equal(table.values, wanted) and table.numbers("visible", "x").shape == (len(wanted), 2)
        assert [table.row(i).number("id") for i in range(len(table))] == [row[0] for row in wanted]


def test_every_float_as_python_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "table.txt"
    values = np.random.default_rng(0).uniform(-500, 500, (2000, 3))
    path.write_text("".join(" ".join(map(repr, row)) + "\n" for row in values.tolist()))
    assert np.array_equal(NumberTable(path, COLUMNS).values, values)


def test_an_empty_file_and_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    assert NumberTable(tmp_path / "empty.txt", COLUMNS).values.shape == (0, 3)
    with pytest.raises(UserError, match=r"none\.txt is missing"):
        NumberTable(tmp_path / "none.txt", COLUMNS)


def test_positions_by_id(tmp_path: Path) -> None:
    path = tmp_path / "table.txt"
    path.write_text("7 1 1\n\n3 2 1\n5 3 1\n")
    rows, others = NumberTable(path, COLUMNS).positions(np.array([5, 7]), tmp_path / "images.txt")
    assert rows.tolist() == [2, 0] and others == 1
    with pytest.raises(UserError, match=r"table\.txt: no line for id 4 \(and 1 more\), which images\.txt has"):
        NumberTable(path, COLUMNS).positions(np.array([4, 5, 8]), tmp_path / "images.txt")
    path.write_text("7 1 1\n\n3 2 1\n7 3 1\n")
    with pytest.raises(UserError, match=r"table\.txt line 4: id 7 is already in line 1; keep one of the two"):
        NumberTable(path, COLUMNS).positions(np.array([7]), tmp_path / "images.txt")
