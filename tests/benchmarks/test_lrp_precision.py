"""The benchmark of the precision of relevance propagation, on generated images. On photographs: tests/explain."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.lrp_precision import main


def noise_images(folder: Path, count: int) -> list[Path]:
    random, files = np.random.default_rng(0), [folder / f"{i}.png" for i in range(count)]
    for file in files:
        Image.fromarray(random.integers(256, size=(32, 32, 3), dtype=np.uint8)).save(file)
    return files


def test_it_writes_the_table(tmp_path: Path) -> None:
    files = noise_images(tmp_path, 3)
    flags = [
        "--model=vit_tiny_patch16_224",
        "--weights=none",
        "--image-size=32",
        "--count=2",
        "--rounds=1",
        "--device=cpu",
    ]
    main([*map(str, files), *flags, f"--out={tmp_path / 'table'}"])
    content = json.loads((tmp_path / "table.json").read_text())
    differences, (cost,) = (section["rows"] for section in content["sections"])
    assert {"transformer_attribution", "full"} < {row["variant"] for row in differences}
    assert all(0 < row["largest_error"] < 0.1 and row["lowest_spearman"] > 0.9 for row in differences)
    assert cost["times_slower"] > 0
    assert content["options"]["images"] == "2 of 3"
