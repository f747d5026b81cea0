"""Checkpoint files: atomic, refused with one line if of another format, with the complete optimiser state."""

import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import timm.optim
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from common.errors import UserError
from engine.run import checkpointing
from engine.run.checkpointing import (
    load_optimizer,
    load_weights,
    optimizer_tensors,
    prefixed,
    read_checkpoint,
    write_safetensors,
)
from engine.run.folder import LAST
from engine.training.state import Progress
from tests.tiny import Session, assert_same_tensors, resumed, tiny_config

OLD = {"model/a": torch.arange(6.0).reshape(2, 3)}
NEW = {"model/a": torch.ones(2, 3), "ema/a": torch.zeros(())}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    progress = {"epoch": 3, "best": None, "sums": {"loss": 0.1 + 0.2}, "name": "ü"}
    write_safetensors(path, NEW | {"optimizer/0/step": torch.tensor(7)}, progress)
    found = read_checkpoint(path)
    assert found.progress == progress
    assert_same_tensors(found.part("model"), {"a": torch.ones(2, 3)})
    assert_same_tensors(found.part("ema"), {"a": torch.zeros(())})
    assert_same_tensors(found.part("optimizer"), {"0/step": torch.tensor(7)})
    assert found.part("none") == {}
    assert os.listdir(tmp_path) == ["x.safetensors"]


def test_others_may_read_it_as_far_as_the_user_lets_them(tmp_path: Path) -> None:
    before = os.umask(0o027)
    write_safetensors(tmp_path / "x.safetensors", NEW, {})
    os.umask(before)
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == 0o640


def half_a_file(tensors: Any, path: Path, metadata: Any) -> None:
    Path(path).write_bytes(b"half")
    raise KeyboardInterrupt


def full_disk(tensors: Any, path: Path, metadata: Any) -> None:
    Path(path).write_bytes(b"half")
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def no_right(tensors: Any, path: Path, metadata: Any) -> None:
    raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize("crash", [half_a_file, full_disk, no_right])
def test_a_crash_while_writing_leaves_the_old_file(crash: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, OLD, {"epoch": 1})
    monkeypatch.setattr(checkpointing, "save_file", crash)
    with pytest.raises(KeyboardInterrupt if crash is half_a_file else UserError) as caught:
        write_safetensors(path, NEW, {"epoch": 2})
    if crash is not half_a_file:
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
        assert "No space left" in str(caught.value) or "Permission denied" in str(caught.value)
    assert read_checkpoint(path).progress == {"epoch": 1}
    assert_same_tensors(read_checkpoint(path).tensors, OLD)
    assert os.listdir(tmp_path) == ["x.safetensors"]


def test_a_crash_before_the_rename_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, OLD, {"epoch": 1})

    def crash(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(UserError, match="Input/output error"):
        write_safetensors(path, NEW, {"epoch": 2})
    assert read_checkpoint(path).progress == {"epoch": 1}
    assert os.listdir(tmp_path) == ["x.safetensors"]


def test_a_write_is_flushed_before_it_takes_the_old_files_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, order = tmp_path / "x.safetensors", []
    fsync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (order.append("flush"), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda *names: (order.append("rename"), rename(*names)))
    write_safetensors(path, OLD, {})
    assert order == ["flush", "flush", "rename", "flush"]  # sealed, about to be renamed, and the folder


def test_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere") as caught:
        write_safetensors(tmp_path / "nowhere" / "x.safetensors", OLD, {})
    assert "\n" not in str(caught.value)


def truncated(path: Path) -> None:
    write_safetensors(path, {"model/a": torch.zeros(1000)}, {})
    path.write_bytes(path.read_bytes()[:-100])


def without_progress(path: Path) -> None:
    save_file({"a": torch.zeros(2)}, path)


def pickled(path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(2)}}, path)


@pytest.mark.parametrize(
    "spoil",
    [
        truncated, without_progress, pickled, lambda path: path.write_bytes(b""), lambda path: path.write_text("hello"),
        lambda path: save_file({"a": torch.zeros(2)}, path, metadata={"progress": "{half"}), lambda path: path.mkdir(),
        lambda path: None,
    ],
    ids=["truncated", "foreign", "pickle", "empty", "text", "half JSON", "folder", "missing"],
)  # fmt: skip
def test_a_file_that_is_not_ours_is_one_line(spoil: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    spoil(path)
    with pytest.raises(UserError) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("spoil", [truncated, without_progress, pickled])
def test_a_spoilt_checkpoint_of_a_run_is_one_line(spoil: Any, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, {"train.epochs": 1})
    Session(config).go()
    (tmp_path / LAST).unlink()
    spoil(tmp_path / LAST)
    with pytest.raises(UserError, match=r"last\.safetensors") as caught:
        Session(resumed(config))
    assert "\n" not in str(caught.value)


def trained(name: str, steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[1].parameters(), "lr": 0.01}]
    optimizer = timm.optim.create_optimizer_v2(groups, opt=name, lr=0.1, weight_decay=0.0)
    for step in range(steps):
        advance(model, optimizer, step)
    return model, optimizer


def advance(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    optimizer.zero_grad()
    model(torch.full((1, 3), float(step + 1))).square().sum().backward()
    optimizer.step()


# Steps may be plain numbers of each parameter (adamp) or of each group (lamb); some keep other floats (laprop).
@pytest.mark.parametrize(
    "name", ["adamw", "adam", "sgd", "nadam", "lamb", "lars", "adamp", "laprop", "nadamlegacy", "adafactor"]
)
def test_an_optimiser_goes_on_as_if_nothing_had_happened(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    model, optimizer = trained(name, 3)
    tensors = prefixed("optimizer", optimizer_tensors(optimizer)) | prefixed("model", model.state_dict())
    write_safetensors(path, tensors, {})
    stored = read_checkpoint(path)
    again, second = trained(name, 0)
    load_weights(again, stored.part("model"), path)
    load_optimizer(second, stored.part("optimizer"))
    assert [group["lr"] for group in second.param_groups] == [0.1, 0.01]
    for step in range(3, 6):
        advance(model, optimizer, step)
        advance(again, second, step)
    assert_same_tensors(again.state_dict(), model.state_dict())


def test_an_optimiser_that_cannot_be_saved_is_one_line() -> None:
    _, optimizer = trained("sgd", 1)
    optimizer.state[optimizer.param_groups[0]["params"][0]]["history"] = [torch.zeros(2)]
    with pytest.raises(UserError, match="optim.name"):
        optimizer_tensors(optimizer)


def test_an_optimiser_of_other_parameters_is_one_line() -> None:
    _, optimizer = trained("adamw", 1)
    for other in (nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))):
        with pytest.raises(UserError, match=r"optim\.\*"):
            load_optimizer(torch.optim.AdamW(other.parameters()), optimizer_tensors(optimizer))


@pytest.mark.parametrize(
    "strange", ["exp_avg", "a/exp_avg", "-1/exp_avg", "9/exp_avg", "group/9/step", "number/0/", "thing/0/step"]
)
def test_a_strange_optimiser_state_is_one_line(strange: str) -> None:
    with pytest.raises(UserError, match=r"optim\.\*"):
        load_optimizer(torch.optim.AdamW(nn.Linear(3, 4).parameters()), {strange: torch.zeros(())})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("group/0/step", torch.zeros(2)),
        ("number/0/step", torch.zeros(2)),
        ("0/step", torch.zeros(2)),
        ("0/step", torch.tensor(-5.0)),
        ("0/exp_avg_sq", torch.zeros(3)),
        ("0/exp_avg_sq", -torch.ones(4, 3)),
        ("0/exp_avg_sq", torch.full((4, 3), torch.nan)),
        ("0/exp_avg", torch.full((4, 3), torch.inf)),
        ("0/exp_avg", torch.zeros(4, 3, dtype=torch.int64)),
        ("0/exp_avg", torch.zeros(4, 3, dtype=torch.bool)),
    ],
)
def test_values_that_no_optimiser_saved_are_one_line(name: str, value: torch.Tensor) -> None:
    with pytest.raises(UserError, match=r"optim\.\*"):
        load_optimizer(torch.optim.AdamW(nn.Linear(3, 4).parameters()), {name: value})


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.complex64])
def test_weights_of_another_kind_are_one_line(kind: torch.dtype) -> None:
    model = nn.Linear(3, 4)
    state = {name: tensor.to(kind) for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=r"x\.safetensors: weight has values of type torch\."):
        load_weights(model, state, Path("x.safetensors"))
    with pytest.raises(UserError, match="not finite"):
        load_weights(model, {"weight": torch.full((4, 3), torch.nan).to(torch.float8_e4m3fn)}, Path("x"))


STRANGE: dict[str, tuple[Any, ...]] = {
    "epoch": ("x", -3, 1.5, None, True), "batch": ("x",), "step": ([1], math.inf), "best": ("a", []),
    "best_metric": (5,), "best_epoch": ("q", -1), "train_seconds": ("s", math.nan), "images": ("x", -1),
    "world_size": ("2",), "batch_images": ("x", -1), "scaler": ([1],), "wandb_id": ({},), "fingerprint": ([1], "x"),
    "sums": (7, [["x"]], [{"a": "b"}], [{"loss": [1, 2, 3]}], [{"loss": [1, "x"]}], {"loss": 1}),
}  # fmt: skip


@pytest.mark.parametrize("name", STRANGE)
def test_progress_that_no_run_saved_is_one_line(name: str) -> None:
    saved = asdict(Progress())
    assert Progress.read(saved, Path("last")) == Progress()
    for value in STRANGE[name]:
        with pytest.raises(UserError, match="last was written by another version"):
            Progress.read({**saved, name: value}, Path("last"))


def test_weights_of_another_model_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="best.safetensors") as caught:
        load_weights(nn.Linear(3, 2), nn.Linear(4, 2).state_dict(), tmp_path / "best.safetensors")
    assert "\n" not in str(caught.value)


def test_tensors_are_copied_to_the_cpu_whole() -> None:
    wide = torch.arange(12.0).reshape(3, 4)
    found = prefixed("model", {"part": wide[:, 1:3].requires_grad_()})["model/part"]
    assert found.is_contiguous() and not found.requires_grad and torch.equal(found, wide[:, 1:3])


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    state = nn.Linear(3, 2).state_dict()
    state["bias"][0] = torch.nan
    with pytest.raises(UserError, match=r"best\.safetensors: bias: values that are not finite"):
        load_weights(nn.Linear(3, 2), state, tmp_path / "best.safetensors")
