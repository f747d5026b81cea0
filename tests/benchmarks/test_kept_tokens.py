"""The benchmark of explanations of kept tokens: it checks, measures and writes a row for each method and sequence."""

import json
from pathlib import Path

from benchmarks import kept_tokens


def test_it_checks_measures_and_writes(tmp_path: Path) -> None:
    tiny = ["--backbone=vit_nano_patch8", "--image-size=32", "--rounds=1", "--device=cpu", "--batch=4"]
    methods = {"agcam", "gradient"}
    kept_tokens.main([*tiny, "--methods", *methods, f"--out={tmp_path / 'table'}"])
    (section,) = json.loads((tmp_path / "table.json").read_text())["sections"]
    rows = {(row["method"], row["tokens"]) for row in section["rows"]}
    assert rows == {("(stage 1)", "")} | {(name, tokens) for name in methods for tokens in ("all", "kept")}
    assert section["details"]["differences"].keys() == methods
    assert all(value < 1e-9 for value in section["details"]["differences"].values())
