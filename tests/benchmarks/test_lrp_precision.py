"""The precision of relevance propagation: its benchmark on generated images, and its bounds on photographs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.lrp_precision import difference, load_images, load_model, main, one_by_one
from explain import explain
from tests.explain.textbook_lrp import lrp as by_hand

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "weights" / "dinov2_small.safetensors"
PHOTOGRAPHS = sorted((ROOT.parent / "shared" / "data" / "real_birds").glob("waterbird*/*/*.jpg"))


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


@pytest.mark.slow
@pytest.mark.skipif(not WEIGHTS.is_file(), reason="needs weights/dinov2_small.safetensors")
@pytest.mark.skipif(not PHOTOGRAPHS, reason="needs ../shared/data/real_birds")
@pytest.mark.parametrize("variant", ["transformer_attribution", "second_layer", "full"])
def test_maps_of_photographs_are_those_of_float64(variant: str) -> None:
    vit, images = load_model("vit_small_patch14_dinov2", str(WEIGHTS), 140), load_images(PHOTOGRAPHS, 10, 140)
    targets = vit(images).argmax(1)
    found = explain(vit, images, "lrp", targets, variant=variant)
    with pytest.warns(UserWarning, match="lrp in float32"):
        measured = one_by_one(vit, images, targets, variant=variant)
    # The bounds in docs/lrp.md.
    assert measured["lowest_spearman"] < {"transformer_attribution": 0.99, "second_layer": 0, "full": 0}[variant]
    assert measured["guard"] < {"transformer_attribution": 1e-3, "second_layer": 0.2, "full": 0.2}[variant]
    vit, images = vit.double(), images.double()
    expected = torch.stack(
        [by_hand(vit, x[None], int(c), variant, "ours") for x, c in zip(images, targets, strict=True)]
    )
    ranks, error = difference(found, expected)
    assert min(ranks) > 0.99999 and error < 1e-5
