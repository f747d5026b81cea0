"""The benchmark of loading: it writes a row for each size and split of made-up photographs."""

import json
from pathlib import Path

import torch

from benchmarks import loader


def test_it_measures_made_up_photographs(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        loader.main(["--rounds=1", "--images=16", "--sizes", "28", f"--out={tmp_path / 'table'}"])
    finally:
        torch.set_num_threads(threads)
    (section,) = json.loads((tmp_path / "table.json").read_text())["sections"]
    rows = [(row["size"], row["split"], row["annotations"], row["batches"]) for row in section["rows"]]
    samples = [(28, "train", True, "no"), (28, "train", False, "no"), (28, "test", True, "no")]
    batches = [(28, "train", False, way) for way in ("float32", "uint8", "uint8, image_cache")]
    assert rows == [*samples, *batches, ("any", "check", True, "no")]
    assert all(row["images_per_second"] > 0 and len(row["each_round"]) == 1 for row in section["rows"])
