"""A method registered from outside this repository works everywhere that a method can be named."""

from __future__ import annotations  # annotations are then text, which `Explainer.options` must resolve

import csv
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import evaluate
from common.errors import UserError
from explain import METHODS, Explainer, explain
from explain import __main__ as cli
from explain.explained_model import ExplainedModel
from tests.explain.small import CASES

NANO = ("--model", "timm/vit_nano_patch8", "--weights", "none")


@dataclass(frozen=True)
class Corner(Explainer):
    """A map that is `level` in one corner and 0 elsewhere."""

    level: float = 1.0
    corner: Literal["first", "last"] = "first"

    def check(self, explained: ExplainedModel) -> None:
        """Accept every model."""

    def maps(self, explained: ExplainedModel, images: Tensor, targets: Tensor | None) -> Tensor:
        maps = images.new_zeros(len(images), *explained.grid(images))
        maps[:, *((0, 0) if self.corner == "first" else (-1, -1))] = self.level
        return maps


class Plain(Explainer):
    """Without options, so not a dataclass."""

    def maps(self, explained: ExplainedModel, images: Tensor, targets: Tensor | None) -> Tensor:
        return images.mean(1)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(METHODS, "_entries", dict(METHODS._entries))  # undone afterwards
    METHODS.register("corner")(Corner)
    METHODS.register("plain")(Plain)
    yield


def test_in_python() -> None:
    case = CASES["class_token"]
    model, x = case.model(), case.images()
    maps = explain(model, x, "corner", level=3, corner="last")
    assert maps.shape == (3, 4, 4) and maps[:, 3, 3].tolist() == [3, 3, 3] and maps.sum() == 9
    assert torch.equal(explain(model, x, "plain"), x.mean(1))
    with pytest.raises(UserError, match="corner has no option depth; it has level, corner"):
        explain(model, x, "corner", depth=1)
    with pytest.raises(UserError, match="--corner: 'middle'; known: first, last"):
        explain(model, x, "corner", corner="middle")


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "grey.png")
    arguments = [str(tmp_path / "grey.png"), *NANO, "--size", "32", "32", "--out", str(tmp_path / "out.png")]
    cli.main([*arguments, "--method", "corner", "--level", "0"])
    assert "corner gives" in capsys.readouterr().err  # the option arrived: the map is empty
    cli.main([*arguments, "--method", "corner", "--level", "2", "--corner", "last"])
    assert capsys.readouterr().err == "" and (tmp_path / "out.png").is_file()
    with pytest.raises(SystemExit):
        cli.main([*arguments, "--method", "corner", "--level", "much"])
    assert "--level: 'much' does not fit; corner takes float" in capsys.readouterr().err


@pytest.mark.parametrize("corner", ["first", "last"])
def test_in_an_evaluation(
    corner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = ("--data.image_size=32", "--data.synthetic.test_images=4", "--data.workers=0")
    weights = tmp_path / "head.safetensors"
    save_two_class_vit(weights)
    arguments = [*NANO[:2], "--weights", str(weights), *data, "--method", "corner", "--corner", corner]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments, "--metrics", "pointing", "--out", "out"])
    evaluate.main()
    assert "1 methods" in capsys.readouterr().out
    (row,) = csv.DictReader((tmp_path / "out" / "methods.csv").open())
    assert row["row"] == "corner"
    assert f'"corner": "{corner}"' in (tmp_path / "out" / "results.json").read_text()


def save_two_class_vit(path: Path) -> None:
    torch.manual_seed(0)
    save_file(timm.create_model("vit_nano_patch8", num_classes=2, img_size=32).state_dict(), path)


@pytest.mark.parametrize("name", list(METHODS))
def test_values_of_another_type_are_refused(name: str) -> None:
    for option in METHODS[name].options():
        with pytest.raises(UserError, match=f"--{option.replace('_', '-')}: <object"):
            METHODS[name](**{option: object()})
