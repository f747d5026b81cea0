"""The table of docs/models.md is what its CSV says, with every family, and small models still have their rows."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import model_support
from benchmarks.model_support import (
    COLUMNS,
    METHODS,
    OUT,
    PAGE,
    families,
    main,
    page,
    read_rows,
    try_model,
    version_of,
    wrong_maps,
)
from benchmarks.textbook_attention import ATTENTION_METHODS, textbook_maps
from explain import explain
from tests.explain.small import vit
from tests.models.small import shaken

ROOT = Path(__file__).parents[2]
ROWS = list(csv.DictReader((ROOT / OUT).read_text().splitlines()))
QUICK = ("vision_transformer", "beit", "resnet", "convnext", "byobnet")
SLOW = ("vision_transformer_relpos", "naflexvit")
"""Families of timm whose model is tried again."""


def test_the_page_is_the_csv_and_has_every_family() -> None:
    libraries = f"timm {version_of('timm/')} and torchvision {version_of('torchvision/')} "
    if libraries not in (ROOT / PAGE).read_text():
        pytest.skip(f"docs/models.md is of other versions than {libraries}")
    assert (ROOT / PAGE).read_text() == page(ROWS)
    assert read_rows(ROOT / OUT) == ROWS  # all of these versions
    assert [row["family"] for row in ROWS] == sorted(families())
    for row in ROWS:
        assert not [cell for cell in row.values() if not cell or cell.startswith("error") or "\n" in cell], row
        assert row["gradient"] == "yes" or "explanations need logits" in row["gradient"]
        if "is not a ViT" in row["raw_attention"]:
            assert all(row[method] == row["raw_attention"] for method in ATTENTION_METHODS)
    read = {row["class"] for row in ROWS if row["raw_attention"] == "yes"}
    assert {"VisionTransformer", "Eva", "Beit", "VisionTransformerRelPos", "NaFlexVit", "Cait"} <= read


@pytest.mark.parametrize("family", [*QUICK, *(pytest.param(each, marks=pytest.mark.slow) for each in SLOW)])
def test_a_model_still_has_its_row(family: str) -> None:
    (wanted,) = [row for row in ROWS if row["family"] == f"timm/{family}"]
    found = try_model(wanted["family"], wanted["model"])
    assert found == wanted | {"version": found["version"]}


def test_a_wrong_map_and_an_exception_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model, image = shaken(vit()).eval(), torch.randn(1, 3, 32, 32)
    assert wrong_maps(model, image, ATTENTION_METHODS) == {}

    def slightly_wrong(*args: Any) -> Tensor:
        maps = explain(*args)
        maps[0, 0] += 1e-4 * maps.abs().max()
        return maps

    monkeypatch.setattr(model_support, "explain", slightly_wrong)
    assert wrong_maps(model, image, ATTENTION_METHODS).keys() == set(ATTENTION_METHODS)
    monkeypatch.setattr(model_support, "explain", lambda *_, **__: 1 / 0)
    assert model_support.outcome(model, image, "gradcam", {}) == "error: ZeroDivisionError: division by zero"
    monkeypatch.setattr(model_support, "explain", lambda *_, **__: torch.ones(1, 4, 4))
    assert model_support.outcome(model, image, "gradcam", {}).startswith("error: the map is constant")


def test_the_textbook_on_attention_in_closed_form() -> None:
    """Uniform attention everywhere: raw attention is 1 / T, and rollout is the same for all patches."""
    model = shaken(vit(reg_tokens=2)).double().eval()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight[:32] = 0  # no query, so all scores are equal
            block.attn.qkv.bias[:32] = 0
    maps = textbook_maps(model, torch.randn(1, 3, 32, 32).double(), ("raw_attention", "rollout"))
    torch.testing.assert_close(maps["raw_attention"], torch.full((16,), 1 / 19).double())
    half = (torch.eye(19) + torch.full((19, 19), 1 / 19)).double() / 2
    torch.testing.assert_close(maps["rollout"], half.matrix_power(3)[0, 3:])


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"timm/resnet": ["test_resnet", "resnet200"], "timm/vision_transformer": ["test_vit"]}
    monkeypatch.setattr(model_support, "families", lambda: known)
    out = tmp_path / "rows.csv"
    main(["--families", "timm/resnet", "--out", str(out)])
    assert "model=test_resnet" in capsys.readouterr().out
    (row,) = csv.DictReader(out.read_text().splitlines())
    assert tuple(row) == COLUMNS and row["gradcam"] == "yes" and "is not a ViT" in row["rollout"]
    monkeypatch.setattr(
        model_support, "try_model", lambda family, name: {"family": family} | dict.fromkeys(METHODS, "yes")
    )
    assert read_rows(out) == [row]
    with monkeypatch.context() as patch:
        patch.setattr(model_support, "version_of", lambda family: "0.1")
        assert read_rows(out) == []  # to be tried again with another version
    main(["--families", "timm/resnet", "timm/vision_transformer", "--out", str(out)])  # keeps the row, adds another
    assert [each["family"] for each in csv.DictReader(out.read_text().splitlines())] == list(known)
    assert "test_resnet" not in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--families", "timm/none", "--out", str(out)])
    assert "--families: no family timm/none; known: timm/resnet" in capsys.readouterr().err


def test_a_model_that_takes_too_long_or_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forever(family: str, name: str) -> nn.Module:
        while True:
            torch.zeros(1)

    monkeypatch.setattr(model_support, "families", lambda: {"timm/resnet": ["test_resnet"]})
    monkeypatch.setattr(model_support, "try_model", forever)
    out = tmp_path / "rows.csv"
    with pytest.raises(SystemExit):
        main(["--families", "timm/resnet", "--seconds", "1", "--out", str(out)])
    assert "error: TimeoutError" in out.read_text() and read_rows(out) == []
