"""The benchmark of inference: FLOPs are those of the formulas, counts those of the masks; it runs and writes."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import harness, inference
from engine.run.checkpointing import write_safetensors
from engine.run.folder import BEST, open_run
from models import masked_attention
from tests.models.small import FLAT
from tests.tiny import tiny_config, tiny_model

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
TINY = ["--image-size=32", "--images=6", "--batch", "1", "4", "--rounds=2", "--device=cpu"]
WIDTH, HIDDEN, DEPTH, PATCH, PATCHES, PREFIX, CLASSES = 32, 64, 3, 8, 16, 5, 200
"""vit_t_dino at 32 pixels."""


def random_model(name: str, keep: float = 0.5, spread: float = 0.5) -> inference.MeasuredModel:
    found = inference.random_model(name, inference.parse([name, *TINY, f"--keep={keep}", f"--spread={spread}"]))
    found.model.eval()
    return found


def block(read: int, written: int) -> int:
    """Operations of a block that `read` tokens enter and of which the outputs of `written` are wanted."""
    linear = read * 3 * WIDTH * WIDTH + written * (WIDTH * WIDTH + 2 * WIDTH * HIDDEN)
    attention = 2 * read * read * WIDTH
    return 2 * (linear + attention)


def stage_2(path: str, count: int) -> int:
    tokens = PREFIX + (PATCHES if path == "dense" else count)
    blocks = (DEPTH - 1) * block(tokens, tokens) + block(tokens, 1 if path == "packed" else tokens)
    return 2 * PATCHES * 3 * PATCH**2 * WIDTH + blocks + 2 * WIDTH * CLASSES


def stage_1(parts: int = 8) -> int:
    vit = 2 * PATCHES * 3 * PATCH**2 * WIDTH + DEPTH * block(PREFIX + PATCHES, PREFIX + PATCHES)
    return vit + 2 * 2 * PATCHES * WIDTH * (parts + 1) + 2 * parts * WIDTH * CLASSES


@pytest.mark.parametrize("path", ["dense", "gathered", "packed"])
@torch.no_grad()
def test_flops_are_those_of_the_formulas(path: str) -> None:
    counts = [3, 3, 9, 16]
    found = inference.flops(random_model("two_stage/vit_t_dino"), path, counts, CPU)
    mean = sum(stage_2(path, count) for count in counts) / 4
    assert found == {"stage_1": stage_1(), "stage_2": mean}


@torch.no_grad()
def test_flops_of_models_of_one_stage_and_of_soft_masks() -> None:
    plain = 2 * PATCHES * 3 * PATCH**2 * WIDTH + DEPTH * block(21, 21) + 2 * WIDTH * CLASSES
    assert inference.flops(random_model("vit/vit_t_dino"), "whole", [], CPU) == {"model": plain}
    assert inference.flops(random_model("pdiscoformer/vit_t_dino"), "whole", [], CPU) == {"model": stage_1()}
    decoupled = inference.flops(random_model("decoupled/vit_t_dino"), "packed", [4], CPU)
    assert decoupled == {"stage_2": stage_2("packed", 4)}
    soft = inference.flops(random_model("two_stage/vit_t_dino"), "soft", [], CPU)
    assert soft == {"stage_1": stage_1(), "stage_2": stage_2("dense", 0)}


@torch.no_grad()
def test_what_is_kept_and_which_images_come_in_a_batch() -> None:
    found = random_model("two_stage/vit_t_dino", keep=0.5, spread=1.0)
    assert found.patch_masks is not None
    expected = found.patch_masks.flatten(1).sum(1).tolist()
    assert sorted(expected) == [1, 3, 6, 10, 13, 16]
    assert inference.kept_counts(found, 4, CPU) == expected
    batch = found.batch(1, 4, CPU)
    assert torch.equal(batch.image, found.images[[4, 5, 0, 1]])
    assert torch.equal(found.model(batch.image).mask, found.patch_masks[[4, 5, 0, 1]])
    assert inference.kept_counts(random_model("vit/vit_t_dino"), 4, CPU) == []


@pytest.mark.parametrize("backbone", [FLAT[1], "vit_t_parallel"])
@torch.no_grad()
def test_paths_have_the_name_of_what_is_run(backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(f"two_stage/{backbone}")
    pruned = "gathered" if backbone == "vit_t_parallel" else "packed"
    assert model.paths(["dense", "auto", "gathered"]) == list(dict.fromkeys(["dense", pruned, "gathered"]))
    seen = []

    def noted(name: str, run: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def note(*args: Any) -> Tensor:
            seen.append(name)
            return run(*args)

        return note

    for name in ("dense", "gathered", "packed"):
        monkeypatch.setattr(masked_attention, name, noted(name, getattr(masked_attention, name)))
    table = inference.cases(random_model(f"two_stage/{backbone}"), ["dense", pruned], [2], torch.float32, CPU)
    harness.measure(table, 2, CPU)
    assert seen == ["dense", pruned] + ["dense", pruned] * 2


@torch.no_grad()
def test_a_path_with_other_logits_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    each = random_model("two_stage/vit_t_dino")
    assert inference.difference(each, ["dense", "packed", "gathered"], 4, CPU) < 1e-5
    packed = masked_attention.packed
    monkeypatch.setattr(masked_attention, "packed", lambda *args: packed(*args).roll(1, -1))
    assert inference.difference(each, ["dense", "packed"], 4, CPU) > 1e-3


def run_folder(out: Path, **keys: Any) -> Path:
    """An untrained run."""
    config = tiny_config(out, {"data.synthetic.test_images": 7, **keys})
    model = tiny_model(config)
    open_run(config, model)
    write_safetensors(out / BEST / "model.safetensors", dict(model.state_dict()), {})
    return out


def test_runs_and_random_models_in_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, soft = run_folder(tmp_path / "run"), run_folder(tmp_path / "soft", **{"model.mask_kind": "soft"})
    words = [str(run), str(soft), "vit/vit_t_dino", *TINY, "--data.eval_batch_size=5", f"--out={tmp_path / 'table.md'}"]
    inference.main(words)
    content, page = json.loads((tmp_path / "table.json").read_text()), (tmp_path / "table.md").read_text()
    assert page.strip() in capsys.readouterr().out
    first, second, third = (section["details"] | section for section in content["sections"])
    assert [row["path"] for row in first["rows"]] == ["dense", "packed"] * 2
    assert [row["batch"] for row in first["rows"]] == [1, 1, 4, 4]
    assert [row["path"] for row in second["rows"]] == ["soft"] * 2 and second["kept_patches"] == []
    assert [row["path"] for row in third["rows"]] == ["whole"] * 2 and set(third["parameters"]) == {"model"}
    assert set(first["parameters"]) == {"stage_1", "stage_2"} and first["grid"] == [4, 4]
    assert len(first["kept_patches"]) == 6 and all(1 <= count <= 16 for count in first["kept_patches"])
    assert first["notes"][0] == "measured on 6 images of its test split" and first["difference_of_paths"] < 1e-4
    dense, packed = (first["flops_per_image"][path] for path in ("dense", "packed"))
    assert dense["stage_1"] == packed["stage_1"] and dense["stage_2"] > packed["stage_2"] > 0
    rows = [row for section in content["sections"] for row in section["rows"]]
    assert all(len(row["seconds"]) == 2 and row["images_per_second"] > 0 and row["peak_MiB"] > 0 for row in rows)
    assert content["options"]["overrides"] == ["--data.eval_batch_size=5"]
    counts = np.array(first["kept_patches"])
    assert f"of 16 patches stage 2 sees: min {counts.min()}, " in page
    assert f"max {counts.max()}, mean {counts.mean():.1f} ({counts.mean() / 16:.1%})" in page


@pytest.mark.slow
def test_it_runs_as_a_module_from_the_root(tmp_path: Path) -> None:
    words = ["two_stage/vit_nano_patch8", *TINY, "--precision=bf16", "--threads=1", f"--out={tmp_path / 'table'}"]
    command = [sys.executable, "-m", "benchmarks.inference", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "| packed | 4 |" in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize(
    "wrong", [["--batch=0"], ["--rounds=0"], ["--keep=0"], ["--spread=2"], ["--paths=x"], ["--warp=1"], ["--split=all"]]
)
def test_an_invalid_option_is_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        inference.parse(["vit/vit_t_dino", *wrong])
    assert stopped.value.code == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_t_dino", "'vit_t_dino' is neither a run folder nor NAME/BACKBONE with NAME one of cnn, decoupled"),
        ("best/vit_t_dino", "'best/vit_t_dino' is neither"),
        ("vit/vit_nowhere", "timm has no model 'vit_nowhere'"),
        (str(ROOT / "docs"), "is not a run folder: it has no config.yaml"),
    ],
)
def test_an_unknown_model_is_one_line(name: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        inference.main([name, *TINY])
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
