"""The benchmark of loading: it writes a row for each size and split of made-up photographs."""

import json
from pathlib import Path

import torch

from benchmarks import loader


def test_it_measures_made_up_photographs(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        loader.main(["--rounds=1", "--images=4", "--sizes", "28", f"--out={tmp_path / 'table'}"])
    finally:
        torch.set_num_threads(threads)
    (section,) = json.loads((tmp_path / "table.json").read_text())["sections"]
    rows = [(row["size"], row["split"], row["annotations"]) for row in section["rows"]]
    assert rows == [(28, "train", True), (28, "train", False), (28, "test", True), ("any", "check", True)]
    assert all(row["images_per_second"] > 0 and len(row["each_round"]) == 1 for row in section["rows"])
