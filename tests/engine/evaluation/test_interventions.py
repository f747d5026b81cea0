"""Reading interventions: every mistake is a one-line error that names the file or flag."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import UserError
from engine.evaluation.interventions import INFO, read_intervention, read_thresholds
from engine.evaluation.loading import fingerprint
from models.interface import ImageClassifier
from tests.tiny import tiny_config, tiny_model

GOOD = {"0": 1.5, "1": -2, "2": 0.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ImageClassifier:
    return tiny_model(tiny_config(tmp_path_factory.mktemp("run")))


def written(folder: Path, content: Any) -> Path:
    path = folder / "0.95.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_good_thresholds_with_and_without_info(model: ImageClassifier, tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    for info in (None, {"fingerprint": fingerprint(model)}, {}, ["of another program"]):
        if info is not None:
            (tmp_path / INFO).write_text(json.dumps(info))
        found = read_thresholds(path, model)
        assert found is not None and found.dtype == torch.float32 and found.tolist() == [1.5, -2.0, 0.0]
    both = read_intervention(path, [2, 0], model)
    assert both is not None and both.remove_parts == (2, 0) and both.thresholds is not None
    assert read_intervention(None, [], model) is None


BAD: dict[str, tuple[Any, str]] = {
    "too many": ({**GOOD, "3": 1.0}, r"\(3 parts\).* it has 4 keys"),
    "too few": ({"0": 1.0}, "it has 1 keys"),
    "other keys": ({"1": 1.0, "2": 1.0, "3": 1.0}, r'"0"\.\."2"'),
    "a list": ([1.0, 2.0, 3.0], "no mapping"),
    "words": ({**GOOD, "1": "high"}, "to a number"),
    "null": ({**GOOD, "1": None}, "to a number"),
    "nan": ('{"0": 1, "1": NaN, "2": 3}', "to a number"),
    "no JSON": ("0.5 0.5", "is not JSON"),
    "empty": ("", "is not JSON"),
}


@pytest.mark.parametrize(("content", "words"), BAD.values(), ids=BAD.keys())
def test_bad_thresholds(content: Any, words: str, model: ImageClassifier, tmp_path: Path) -> None:
    path = written(tmp_path, content)
    with pytest.raises(UserError, match=words) as caught:
        read_thresholds(path, model)
    assert str(caught.value).startswith(f"--thresholds: {path}") and "\n" not in str(caught.value)


def test_a_mistyped_path_and_a_folder(model: ImageClassifier, tmp_path: Path) -> None:
    for path in (tmp_path / "0.59.json", tmp_path):
        with pytest.raises(UserError, match=f"--thresholds: cannot read {path}"):
            read_thresholds(path, model)


def test_thresholds_of_other_weights(model: ImageClassifier, tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    (tmp_path / INFO).write_text(json.dumps({"fingerprint": "0123456789abcdef"}))
    with pytest.raises(UserError, match="other weights"):
        read_thresholds(path, model)


def test_unknown_parts(model: ImageClassifier) -> None:
    for parts in ([3], [0, -1]):
        with pytest.raises(UserError, match="--remove-parts: parts are numbered 0 to 2"):
            read_intervention(None, parts, model)


def test_a_plain_vit_has_no_parts(tmp_path: Path) -> None:
    plain = tiny_model(tiny_config(tmp_path, {"model.name": "vit"}))
    with pytest.raises(UserError, match="two-stage"):
        read_intervention(None, [0], plain)
    with pytest.raises(UserError, match="two-stage"):
        read_intervention(written(tmp_path, GOOD), [], plain)
