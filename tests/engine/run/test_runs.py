"""Signals, the run folder, devices, provenance, and rows of metrics on disk."""

import json
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from common.errors import UserError
from common.processes import Processes
from engine.run import machine, tracking
from engine.run.folder import BEST, LAST, open_run, read_results, run_config
from engine.run.machine import pick_device, prepare_process, provenance
from engine.run.stopping import RunStopped, StopRequest
from engine.run.tracking import Tracker, read_rows
from models.registry import MODELS
from report.curves import has_curves
from tests.tiny import assert_same_tensors, tiny_config, tiny_model


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_does_what_it_did_before(number: signal.Signals) -> None:
    heard: list[int] = []
    before = signal.signal(number, lambda received, frame: heard.append(received))
    try:
        with StopRequest() as stop:
            assert stop.signal is None
            signal.raise_signal(number)
            assert (stop.signal, heard) == (number, [])
            signal.raise_signal(number)
            assert heard == [number]
        signal.raise_signal(number)
        assert heard == [number] * 2
    finally:
        signal.signal(number, before)


def test_handlers_are_put_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(UserError), StopRequest():
        raise UserError("no")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_exit_codes_of_stopped_runs() -> None:
    assert (RunStopped(signal.SIGTERM).exit_code, RunStopped(signal.SIGINT).exit_code) == (143, 130)
    assert str(RunStopped(signal.SIGTERM)) == "SIGTERM"


def test_open_run_writes_config_and_model_description(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "runs" / "deep")
    model = tiny_model(config)
    out = open_run(config, model)
    assert run_config(out) == config and run_config(out, ["--data.root=elsewhere"]).data.root == "elsewhere"
    described = json.loads((out / BEST / "config.json").read_text())
    assert described["num_classes"] == 2
    assert described["model_config"]["parts"]["num_parts"] == 3


def test_the_best_folder_rebuilds_the_model(tmp_path: Path) -> None:
    for name in MODELS:
        backbone = {"model.backbone": "resnet10t"} if name == "cnn" else {}
        config = tiny_config(tmp_path / name, {"model.name": name, **backbone})
        model = tiny_model(config)
        model._save_pretrained(open_run(config, model) / BEST)
        again = type(model).from_pretrained(str(tmp_path / name / BEST))
        assert_same_tensors(again.state_dict(), model.state_dict())
        assert again.model_config == model.model_config


def test_a_run_is_never_overwritten_unasked(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run")
    model, out = tiny_model(config), Path(config.out)
    open_run(config, model)
    open_run(config, model)  # nothing trained yet: it may start again
    (out / LAST).write_text("trained")
    with pytest.raises(UserError, match="already holds a run"):
        open_run(config, model)
    open_run(replace(config, resume=True), model)
    assert (out / LAST).read_text() == "trained"
    open_run(replace(config, overwrite=True), model)
    assert not (out / LAST).exists()


def test_not_a_run_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        run_config(tmp_path)
    assert read_results(tmp_path) is None


def test_devices() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("abacus", "cuda:99"):
        with pytest.raises(UserError, match=f"train.device.*{name}"):
            pick_device(name)


def test_prepare_process_sets_threads_and_determinism(tmp_path: Path) -> None:
    try:
        keys = {"train.deterministic": True, "train.threads": 1}
        assert prepare_process(tiny_config(tmp_path, keys)) == torch.device("cpu")
        assert torch.are_deterministic_algorithms_enabled() and torch.get_num_threads() == 1
        assert not torch.backends.cudnn.benchmark
    finally:
        prepare_process(tiny_config(tmp_path))
    assert not torch.are_deterministic_algorithms_enabled()


def test_provenance_is_json_and_says_what_ran() -> None:
    found = json.loads(json.dumps(provenance()))
    assert found["packages"]["torch"] == torch.__version__.split("+")[0] or "+" in found["packages"]["torch"]
    assert {"command", "python", "device", "commit"} <= found.keys()


def test_the_commit_is_that_of_this_repository_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed below another repository, as in its virtual environment, there is no commit to name."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", "-C", str(tmp_path), *identity, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "site-packages" / "engine" / "run" / "machine.py"))
    (tmp_path / "site-packages" / "engine" / "run").mkdir(parents=True)
    assert provenance()["commit"] is None


@pytest.mark.parametrize(
    "line",
    [
        "[1, 2]", '{"epoch": "1"}', '{"epoch": null}', '{"epoch": NaN}', '{"epoch": 1e400}',
        f'{{"epoch": {"9" * 400}}}', '{"epoch": 1, "val/accuracy": "x"}', '{"epoch": 1, "train/loss": [1]}',
        "[" * 100_000,
    ],
)  # fmt: skip
def test_rows_that_no_run_wrote_end_the_history(line: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1, "val/accuracy": null}\n' + line + "\n")
    assert read_rows(tmp_path / "metrics.jsonl") == [{"epoch": 1, "val/accuracy": None}]
    assert not has_curves(read_rows(tmp_path / "metrics.jsonl"))
    Tracker(tmp_path, tiny_config(tmp_path)).truncate(5)


@pytest.mark.parametrize(
    "text", ["[1]", '[["a", 1]]', "null", "", '{"a": 1, "a": 2}', '{"test/accuracy": "x"}', "[" * 10**5]
)
def test_damaged_results_are_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match=r"results\.json is damaged; delete it"):
        read_results(tmp_path)


def test_rows_come_back_and_a_line_cut_short_is_left_out(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, tiny_config(tmp_path))
    assert tracker.rows() == [] and tracker.run_id is None
    rows = [{"epoch": i, "train/loss": 0.1 + i, "val/accuracy": 0.5} for i in (1, 2, 3)]
    for row in rows:
        tracker.log(row)
    assert tracker.rows() == rows
    with tracker.path.open("a") as file:
        file.write('{"epoch": 4, "tra')
    assert tracker.rows() == rows
    tracker.truncate(2)
    assert tracker.rows() == read_rows(tmp_path / "metrics.jsonl") == rows[:2]
    tracker.log(rows[2])
    assert tracker.rows() == rows


def test_the_terminal_shows_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = Tracker(tmp_path, tiny_config(tmp_path))
    tracker.log({"epoch": 1, "train/loss": 1.25, "val/accuracy": 0.5, "unknown": 7})
    tracker.log({"epoch": 12, "train/loss": 0.25, "val/accuracy": float("nan")})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["epoch", "loss", "val", "acc"]
    assert lines[1].split() == ["1", "1.2500", "50.0%"] and lines[2].split()[:2] == ["12", "0.2500"]
    assert len({len(line) for line in lines}) == 1


def test_outside_the_main_process_the_tracker_writes_and_prints_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Tracker(tmp_path, tiny_config(tmp_path)).log({"epoch": 1, "train/loss": 1.25})
    before = (tmp_path / "metrics.jsonl").read_text()
    capsys.readouterr()
    monkeypatch.setattr(tracking, "processes", lambda: Processes(rank=1, world_size=2))
    tracker = Tracker(tmp_path, tiny_config(tmp_path))
    tracker.log({"epoch": 2, "train/loss": 0.5})
    tracker.message("a message")
    with tracker.bar("epoch 2", total=3) as advance:
        advance(4)
    tracker.truncate(0)
    assert (tmp_path / "metrics.jsonl").read_text() == before
    assert capsys.readouterr().out == ""
