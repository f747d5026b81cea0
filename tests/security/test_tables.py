"""Damaged or malicious tables in a run folder."""

import json
from pathlib import Path
from typing import Any

import pytest

from commands.convert_checkpoint import _our_model
from commands.study_run import read_overrides
from common.errors import UserError
from engine.evaluation.interventions import read_thresholds
from engine.run.command_line import parse_config
from engine.run.folder import read_results
from explain.loading import load_run
from models.two_stage import TwoStageModel
from tests.tiny import tiny_config, tiny_model

HUGE = 10**400


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TwoStageModel:
    found = tiny_model(tiny_config(tmp_path_factory.mktemp("model")))
    assert isinstance(found, TwoStageModel)
    return found


@pytest.mark.parametrize(
    "content",
    [b"[" * 100000, b"\xff\xfe", b"{", b"[1, 2, 3]", json.dumps({"0": HUGE, "1": 0, "2": 0}).encode(),
     b'{"0": NaN, "1": 0, "2": 0}', b'{"0": "1", "1": 0, "2": 0}', b'{"0": [], "1": 0, "2": 0}'],
)  # fmt: skip
def test_thresholds(content: bytes, model: TwoStageModel, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_bytes(content)
    with pytest.raises(UserError, match="--thresholds: ") as caught:
        read_thresholds(tmp_path / "t.json", model)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"7", b"\xff", b"[" * 100000])
def test_results_of_a_run(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(UserError, match=r"results\.json is damaged"):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text("{}")
    assert read_results(tmp_path) == {}


def changed(folder: Path, key: str, value: Any) -> None:
    """config.json with another value at a dotted key."""
    content = json.loads((folder / "config.json").read_text())
    *parents, name = key.split(".")
    place = content
    for parent in parents:
        place = place[parent]
    place[name] = value
    (folder / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_classes", "x"), ("num_classes", -1), ("image_size", 7), ("image_size", [0, 0]), ("model_config", [1]),
     ("model_config.parts", None), ("model_config.parts.num_parts", "x"), ("model_config.backbone", 7),
     ("model_config.backbone", "no_such_model"), ("model_config.name", [])],
)  # fmt: skip
def test_a_saved_models_config(key: str, value: Any, model: TwoStageModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    changed(tmp_path, key, value)
    with pytest.raises(UserError) as caught:
        _our_model(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("model_config.drop_path", 2, "drop_path"),
        ("model_config.drop_path", "0.1; x", "drop_path"),
        ("model_config.mask_kind", "harder", "mask_kind"),
        ("model_config.parts.part_dropout", 1.0, "part_dropout"),
        ("model_config.parts.temperature", 0, "temperature"),
        ("model_config.parts.num_parts", 10**30, "config.json"),
        ("model_config.parts", "other.json", "parts is a group of keys"),
        ("num_classes", 10**12, "num_classes 1000000000000"),
        ("num_classes", True, "num_classes True"),
        ("image_size", [32, 32, 32], r"image_size \[32, 32, 32\]"),
        ("image_size", [32, 10**9], "image_size"),
        ("model_config.stage_1", 1, "'stage_1'"),
        ("model_config.parts.tau", 1, "'parts.tau'"),
        ("architectures", ["ViT"], "unknown key 'architectures'"),
    ],
)
def test_a_saved_models_config_is_checked_before_a_model_is_built(
    key: str, value: Any, problem: str, model: TwoStageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.save_pretrained(tmp_path)
    assert TwoStageModel.from_pretrained(tmp_path).model_config == model.model_config
    changed(tmp_path, key, value)
    monkeypatch.setattr(TwoStageModel, "__init__", pytest.fail)
    with pytest.raises(UserError, match=problem) as caught:
        TwoStageModel.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 100000, b"7", b"", b'{"num_classes": 2, "num_classes": 3}'])
def test_a_saved_models_config_that_is_none(content: bytes, model: TwoStageModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError):
        TwoStageModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "7", "model: 7", "model: {name: vit}", "data: {mean: [1], std: 2}", "[[[", "a: *b"]
)
def test_a_runs_config_for_python_m_explain(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"--run: |cannot read") as caught:
        load_run(tmp_path)
    assert "config.yaml" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["loss: 3", "model: []", "model: {parts: }", "loss: {weights: null}"])
def test_a_group_of_keys_is_no_value(text: str, tmp_path: Path) -> None:
    """The parser would silently use the defaults."""
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match="is a group of keys, not a value"):
        parse_config([f"--config={tmp_path / 'c.yaml'}"])


@pytest.mark.parametrize("value", ["[1", "{", "9" * 5000, "!!python/name:os.system", "@"])
def test_overrides_of_a_study(value: str) -> None:
    with pytest.raises(UserError, match="--set: ") as caught:
        read_overrides(["train.epochs=3", f"train.seed={value}"])
    assert "\n" not in str(caught.value)
    assert read_overrides(["a=3", "b=x=y"]) == {"a": 3, "b": "x=y"}


@pytest.mark.parametrize("number", [".nan", ".inf", "-.inf", "9" * 400])
def test_numbers_that_nothing_can_be_computed_with(number: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(f"optim: {{weight_decay: {number}}}\n")
    with pytest.raises(UserError, match=r"optim\.weight_decay.* (must be a number|is too large)|a number is too large"):
        parse_config([f"--config={tmp_path / 'c.yaml'}"])
