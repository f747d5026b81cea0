"""Training with stored tokens is the same training."""

from pathlib import Path

import pytest

from common.errors import UserError
from tests.tiny import Remains, Session, assert_same_run, tiny_config

FROZEN = {"optim.freeze_stage_1": True, "optim.freeze_stage_1_tokens": True, "data.augmentation": "flip"}


def test_a_run_with_stored_tokens_is_the_run_without_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    stored = FROZEN | {"train.token_cache": "~/tokens"}
    plain = Remains.of(Path(Session(tiny_config(tmp_path / "plain", FROZEN)).go().config.out))
    for name in ("first", "second"):
        Session(tiny_config(tmp_path / name, stored)).go()
    # An empty and a full cache give the same bits; without one, batches round differently.
    assert_same_run(tmp_path / "first", tmp_path / "second")
    first = Remains.of(tmp_path / "first")
    for row, other in zip(plain.rows, first.rows, strict=True):
        for key in ("train/loss", "train/equivariance", "val/mask_iou"):
            assert other[key] == pytest.approx(row[key], abs=2e-4), key
    inputs = len(list((tmp_path / "tokens").rglob("*.npy")))
    assert 32 + 16 < inputs <= 2 * 34 + 16, "training images and their flips, validation images, but no warped view"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"optim.freeze_stage_1": False}, "optim.freeze_stage_1"),
        ({"optim.freeze_stage_1_tokens": False}, "optim.freeze_stage_1_tokens"),
        ({"model.stage_1_drop_path": 0.1}, "model.stage_1_drop_path"),
        ({"train.compile": True}, "train.compile"),
    ],
)
def test_a_stage_1_that_changes_is_refused(changes: dict, named: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"train.token_cache.*{named}"):
        tiny_config(tmp_path, FROZEN | {"train.token_cache": str(tmp_path / "tokens")} | changes)
