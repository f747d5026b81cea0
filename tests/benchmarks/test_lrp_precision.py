"""The benchmark of the precision of relevance propagation, on generated images. On photographs: tests/explain."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.lrp_precision import main


def write_images(folder: Path, count: int) -> None:
    random = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(random.integers(256, size=(32, 32, 3), dtype=np.uint8)).save(folder / f"{number}.jpg")


def test_it_writes_the_table(tmp_path: Path) -> None:
    write_images(tmp_path, 3)
    flags = [
        "--model=vit_tiny_patch16_224",
        "--weights=none",
        "--image-size=32",
        "--count=2",
        "--rounds=1",
        "--device=cpu",
    ]
    main([str(tmp_path), *flags, f"--out={tmp_path / 'table'}"])
    content = json.loads((tmp_path / "table.json").read_text())
    differences, (cost,) = (section["rows"] for section in content["sections"])
    assert {"transformer_attribution", "full"} < {row["variant"] for row in differences}
    assert all(0 < row["largest_error"] < 0.1 and row["lowest_spearman"] > 0.9 for row in differences)
    assert cost["times_slower"] > 0


def test_too_few_photographs_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path, 1)
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path), "--model=vit_tiny_patch16_224", "--weights=none", "--image-size=32", "--device=cpu"])
    assert "--count: 10 photographs" in capsys.readouterr().err
