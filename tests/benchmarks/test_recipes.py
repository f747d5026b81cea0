"""The benchmark of the recipes."""

import json
from pathlib import Path

import pytest

from benchmarks import recipes


@pytest.mark.slow
def test_it_measures_every_recipe(tmp_path: Path) -> None:
    flags = ["--backbone=vit_nano_patch8", "--image-size=96", "--batch=4", "--rounds=1", "--device=cpu"]
    recipes.main([*flags, f"--out={tmp_path / 'table'}"])
    (section,) = json.loads((tmp_path / "table.json").read_text())["sections"]
    memory = {row["recipe"]: row["memory_ratio"] for row in section["rows"]}
    assert list(memory) == list(recipes.RECIPES)
    # Each change leaves out work of which something is kept for the backward pass.
    assert memory["published"] == 1 > memory["same settings"] > memory[recipes.TOKENS]
    assert memory["same settings"] > max(memory[recipes.VIEWS], memory["half-size stage 1"])
    stored = f"{recipes.TOKENS}, {recipes.VIEWS}, stored tokens"
    assert memory[stored] > memory[f"{stored}, {recipes.BLOCKS}"]
