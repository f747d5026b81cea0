"""Old names are refused with the new name in flags and config files, and converted in saved runs."""

import json
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
import yaml

import evaluate
import train
from commands import train_run
from commands.study_jobs import Job, run_job
from common.errors import UserError
from engine.explanation.map_store import MapProvenance, MapReader, MapWriter
from engine.run.checkpointing import read_checkpoint, write_safetensors
from engine.run.command_line import parse_config
from engine.run.folder import CONFIG_FILE, LAST, METRICS_FILE, RESULTS, read_results, run_config
from engine.run.renamed_keys import KEYS, METRICS, VALUES
from engine.run.stopping import RunStopped
from engine.run.tracking import read_rows
from tests.tiny import Session, assert_same_run, timeless, tiny_config

VALUE = {"train.watch_test": True}
"""Old key -> a valid value; 1 for all others."""
OLD_VALUES = [(key, old, new) for key, names in VALUES.items() for old, new in names.items()]
RUN = {
    "train.best_metric": "empty_ratio", "train.log_test": True, "optim.grad_accum_steps": 2,
    "optim.head_lr_mult": 0.1 + 0.2, "loss.consistency.report_fraction": 0.7, "optim.lr": 1e-3 / 3,
}  # fmt: skip


def refusal(*arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        parse_config(list(arguments))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def nested(key: str, value: Any) -> dict[str, Any]:
    for name in reversed(key.split(".")):
        value = {name: value}
    return dict(value)


@pytest.mark.parametrize("old", KEYS)
def test_an_old_key_is_refused_with_the_new_one_wherever_it_stands(old: str, tmp_path: Path) -> None:
    value, message = json.dumps(VALUE.get(old, 1)), f"{old}: now {KEYS[old]}"
    parse_config([f"--{KEYS[old]}={value}"])
    assert refusal(f"--{old}={value}") == refusal(f"--{old}", value) == message
    (tmp_path / "empty.yaml").write_text("{}")
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(nested(old, VALUE.get(old, 1))))
    for files in ((tmp_path / "old.yaml",), (tmp_path / "empty.yaml", tmp_path / "old.yaml")):
        said = refusal(*(f"--config={file}" for file in files))
        assert message in said and "old.yaml" in said
    group, _, name = old.rpartition(".")
    assert refusal(f"--{group}", f"{{{name}: {value}}}").endswith(message)


@pytest.mark.parametrize(("key", "old", "new"), OLD_VALUES)
def test_an_old_value_is_refused_with_the_new_one(key: str, old: str, new: str, tmp_path: Path) -> None:
    message = f"{key}={old}: now {new}"
    parse_config([f"--{key}={new}"])
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(nested(key, old)))
    assert refusal(f"--{key}={old}") == refusal(f"--{key}", old) == message
    assert message in refusal(f"--config={tmp_path / 'old.yaml'}")


def test_an_old_metric_of_a_stage_is_refused_too() -> None:
    assert refusal("--train.best_metric=stage_1/empty_share").endswith(": now stage_1/empty_ratio")


def test_the_command_ends_with_code_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--optim.accumulation=4"])
    with pytest.raises(SystemExit) as stopped:
        train.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: optim.accumulation: now optim.grad_accum_steps\n"


def last(name: str) -> str:
    return name.rpartition(".")[2]


def with_old_names(text: str) -> str:
    """Text of a run folder's file as an earlier version wrote it."""
    names = {last(new): last(old) for old, new in KEYS.items()} | {new: old for old, new in METRICS.items()}
    for new, old in (names | {"center_crop": "cover"}).items():
        text = text.replace(new, old)
    return text


def age(run: Path) -> Path:
    """Write the old names into every file of the run folder."""
    for file in (run / CONFIG_FILE, run / METRICS_FILE, run / RESULTS):
        if file.exists():
            before = file.read_text()
            # No earlier version wrote this key of results.json.
            file.write_text(
                with_old_names(before).replace('"best_metric": "empty_share"', '"best_metric": "empty_ratio"')
            )
            assert file.read_text() != before
    for checkpoint in run.glob("*/*.safetensors"):
        stored = read_checkpoint(checkpoint)
        write_safetensors(checkpoint, stored.tensors, json.loads(with_old_names(json.dumps(stored.progress))))
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with today's names."""
    out, threads = tmp_path_factory.mktemp("whole") / "run", torch.get_num_threads()
    train_run.train(tiny_config(out, RUN))
    torch.set_num_threads(threads)
    return out


@pytest.fixture
def old(whole: Path, tmp_path: Path) -> Path:
    """The same run, saved by an earlier version."""
    return age(Path(shutil.copytree(whole, tmp_path / "old")))


def test_a_saved_run_reads_as_the_same_run(old: Path, whole: Path) -> None:
    saved = yaml.safe_load((old / CONFIG_FILE).read_text())
    assert (
        saved["optim"]["scratch_factor"] == RUN["optim.head_lr_mult"] and saved["train"]["best_metric"] == "empty_share"
    )
    assert run_config(old) == run_config(whole)
    assert repr(read_rows(old / METRICS_FILE)) == repr(read_rows(whole / METRICS_FILE))
    assert repr(read_results(old)) == repr(read_results(whole))
    assert any("kept_share" in line for line in (old / METRICS_FILE).read_text().splitlines())


def test_other_config_files_beside_a_run_are_converted_or_named(old: Path, whole: Path) -> None:
    """Later flags override the converted file; a damaged file is named."""
    config = parse_config(["--config", str(old / CONFIG_FILE), "--optim.lr=0.5", f"--config={whole / CONFIG_FILE}"])
    assert config == run_config(whole)
    assert parse_config([f"--config={old / CONFIG_FILE}", "--optim.lr=0.5"]).optim.lr == 0.5
    (old / CONFIG_FILE).write_text("optim: {accumulation: 4, nonsense: 3}")
    assert "nonsense" in refusal(f"--config={old / CONFIG_FILE}")
    (old / CONFIG_FILE).write_text("optim.accumulation: 4")
    assert parse_config([f"--config={old / CONFIG_FILE}"]).optim.grad_accum_steps == 4
    (old / CONFIG_FILE).write_text("loss: 3\noptim.accumulation: 4")
    assert "loss" in refusal(f"--config={old / CONFIG_FILE}")
    (old / CONFIG_FILE).write_text("{1: 2, optim: {accumulation: 4}}")
    assert "1" in refusal(f"--config={old / CONFIG_FILE}")
    (old / CONFIG_FILE).write_text("optim: [")
    assert "config.yaml" in refusal(f"--config={old / CONFIG_FILE}")


def test_a_saved_run_is_resumed_from_the_middle_of_an_epoch(whole: Path, tmp_path: Path) -> None:
    """Sums of the current epoch, rows, best value and config are all converted."""

    def ask(count: int) -> None:
        if count == 5:  # the second of four batches of the second epoch
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(RunStopped):
        Session(tiny_config(tmp_path / "old", RUN), before_batch=ask).go()
    age(tmp_path / "old")
    assert "kept_share" in read_checkpoint(tmp_path / "old" / LAST).progress["sums"][0]
    train_run.train(parse_config([f"--config={tmp_path / 'old' / CONFIG_FILE}", "--resume=true"]))
    assert_same_run(whole, tmp_path / "old")
    assert "kept_share" not in (tmp_path / "old" / METRICS_FILE).read_text()


def evaluated(run: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], list[str]]:
    """The results of evaluate.py without provenance, and the names of its files."""
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--run", str(run)])
    evaluate.main()
    out = run / "evaluation" / "test"
    found = json.loads((out / RESULTS).read_text())
    described = {key: value for key, value in found.items() if key not in ("provenance", "run")}
    return timeless(described), sorted(path.name for path in out.iterdir())


def test_a_saved_run_is_evaluated_to_equal_values(old: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert repr(evaluated(old, monkeypatch)) == repr(evaluated(whole, monkeypatch))


def test_a_study_takes_a_saved_run_for_its_own(old: Path, whole: Path) -> None:
    def never(config: Any) -> Any:
        raise AssertionError("trained again")

    results = run_job(Job("row", 0, tiny_config(old, RUN)), never)
    assert repr(results) == repr(read_results(whole)) and "val/keep_ratio" in results


def test_saved_maps_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    """Earlier versions called the provenance `made_of` and stored the old value of data.evaluation."""
    path, methods = tmp_path / "maps.h5", {"rollout": {}}
    with MapWriter(path, MapProvenance({"weights": "abc", "data.evaluation": "cover"}, methods)) as writer:
        writer.add_images(["a.jpg"], {"predicted": torch.tensor([1])})
        writer.add("rollout", "label", torch.ones(1, 2, 2))
    with h5py.File(path, "a") as file:
        file.attrs["made_of"] = file.attrs["map_provenance"]
        del file.attrs["map_provenance"]
    MapReader(path, MapProvenance({"weights": "abc", "data.evaluation": "center_crop"}, methods))
    with pytest.raises(UserError, match="was made with the data.evaluation center_crop, not squash"):
        MapReader(path, MapProvenance({"weights": "abc", "data.evaluation": "squash"}, methods))
