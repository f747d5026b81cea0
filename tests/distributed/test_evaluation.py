"""Evaluation on several processes: what one process finds, in its order, no image left out or counted twice."""

import inspect
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import evaluate
import study
from commands import part_thresholds
from common.errors import UserError
from datasets import Split
from datasets.config import DataConfig
from datasets.subset import Subset
from engine.evaluation.backgrounds import measure_set, read_sets, run_challenge
from engine.evaluation.loop import evaluate as measure
from engine.evaluation.loop import split_loader
from engine.evaluation.records import RecordCollector
from engine.run.config import RunConfig
from engine.training.consistency import Agreement
from losses.config import ConsistencyConfig
from metrics import build_metrics
from tests.distributed.test_metrics import few_resamples
from tests.engine.evaluation.test_backgrounds import BackgroundBiased
from tests.engine.evaluation.test_evaluation import lively_model
from tests.processes import on_processes
from tests.scripts.running import ROOT
from tests.tiny import CPU, timeless, tiny_config, tiny_splits
from tests.trees import imagenet9_tree

IMAGES = 7
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--")
SIZES = (*((count, IMAGES) for count in range(1, IMAGES + 1)), (IMAGES, 1))
"""Images of the test split, and those that a metric is fitted on."""
Found = tuple[dict[str, float], list[dict[str, Any]]]
"""Metrics and records."""


def of_all_sizes() -> list[Found]:
    """A small model in batches of 2."""
    keys = {"data.synthetic.test_images": IMAGES, "data.synthetic.val_images": IMAGES, "data.eval_batch_size": 2}
    config = tiny_config(Path("unused"), keys)
    splits, model = tiny_splits(config), lively_model(config)
    with few_resamples():
        return [
            figures_and_records(model, first_of(splits["test"], count), first_of(splits["val"], fitted), config.data)
            for count, fitted in SIZES
        ]


def figures_and_records(model: nn.Module, test: Split, training: Split, data: DataConfig) -> Found:
    names = ("accuracy", "groups", "auroc", "mask", "foreground", "parts", "keypoints", "f1")
    recorder, metrics = RecordCollector(), build_metrics(names, test.info)
    agreement = Agreement(model, ConsistencyConfig(first="foreground", second="gradcam", report_fraction=0.6))
    loaders = split_loader(test, data), split_loader(training, data)
    values = measure(model, loaders[0], metrics, CPU, observers=[recorder, agreement], training=loaders[1])
    return values | agreement.results(), [asdict(record) for record in recorder.gathered()]


def first_of(split: Split, count: int) -> Split:
    return Split(Subset(split.raw, range(count)), split.transform, train=False, seed=split.seed)


@pytest.fixture(scope="module")
def alone() -> list[Found]:
    return on_processes(1, of_all_sizes)[0]


def about(record: dict[str, Any], name: str) -> dict[str, Any]:
    return {name: pytest.approx(record[name], rel=1e-4)}


@pytest.mark.parametrize("world_size", [2, 3])
def test_any_number_of_images(world_size: int, alone: list[Found]) -> None:
    """Metrics differ by what a batch's size does to the model's last digit."""
    for answers in on_processes(world_size, of_all_sizes):
        for (count, _), (values, records), (expected, in_order) in zip(SIZES, answers, alone, strict=True):
            assert [record["path"] for record in records] == [f"synthetic/test/{i:05d}" for i in range(count)]
            assert records == [record | about(record, "wrong_confidence") for record in in_order]
            assert values == pytest.approx(expected, abs=1e-5, nan_ok=True)
            counts = {key: value for key, value in expected.items() if key.startswith("count/")}
            assert counts == {key: values[key] for key in counts} and values["count/images"] == count
        assert "agreement/low" in values


def figures_of_backgrounds(config: RunConfig) -> str:
    """As text: nan equals nan."""
    sets = read_sets(config, None, challenge=True)
    model = BackgroundBiased(sets)
    values = measure_set(model, sets["mixed_rand"], config, CPU)
    return repr(values | run_challenge(model, sets, config, CPU, lambda count: None))


def test_backgrounds(tmp_path: Path) -> None:
    root = imagenet9_tree(tmp_path / "sets")
    keys = {"data.name": "imagenet9", "data.root": str(root), "model.name": "vit", "data.eval_batch_size": 4}
    config = tiny_config(tmp_path / "run", keys)
    alone = figures_of_backgrounds(config)
    assert "'count/foregrounds': 9.0" in alone
    assert on_processes(2, figures_of_backgrounds, config) == [alone, alone]


def evaluated(*arguments: str) -> None:
    """evaluate.py in the process group that there is."""
    torch.set_num_threads(1)
    sys.argv = ["evaluate.py", *arguments]
    with few_resamples():
        inspect.unwrap(evaluate.main)()


def outcome(out: Path) -> dict[str, Any]:
    """Everything that an evaluation left, without what tells the time or the command."""
    results = json.loads((out / "results.json").read_text())
    rows = [timeless(row) for row in results.pop("rows", [])]
    kept = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.suffix in (".png", ".csv")}
    kept.pop(Path("methods.csv"), None)
    names = {path.relative_to(out) for path in out.rglob("*") if path.is_file()}
    return timeless(results) | {"provenance": None, "rows": rows, "kept": kept, "names": names}


ALONE = ("--data.eval_batch_size", "1")
QUICK = ("--removal-steps", "2")
CASES: dict[str, Sequence[str]] = {
    "metrics": ("--limit", "7", "--metrics", "accuracy", "groups", "auroc", "mask", "parts", "keypoints", "f1"),
    "metrics of fewer images than processes": ("--limit", "2"),
    "parts left out": ("--limit", "5", "--leave-one-part-out"),
    "methods": ("--limit", "5", "--method", "agcam", "rollout", *QUICK),
    "methods on fewer images than processes": ("--limit", "2", "--method", "rollout", *QUICK),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_one_image_at_a_time_nothing_differs(case: str, runs: Path, tmp_path: Path) -> None:
    """Metrics to the last digit, tables, images: of one process and of three."""
    arguments = ("--run", str(runs / "two"), *ALONE, *CASES[case])
    for world_size in (1, 3):
        on_processes(world_size, evaluated, *arguments, "--out", str(tmp_path / str(world_size)))
    assert outcome(tmp_path / "3") == outcome(tmp_path / "1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3"]


@pytest.mark.slow
def test_saved_maps(runs: Path, tmp_path: Path) -> None:
    """One process writes them, any number reads them."""
    arguments = ("--run", str(runs / "two"), *ALONE, "--method", "rollout", "--metrics", "pointing", "--limit", "4")
    with pytest.raises(UserError, match="--save-maps works in one process"):
        on_processes(2, evaluated, *arguments, "--save-maps", str(tmp_path / "maps.h5"))
    on_processes(1, evaluated, *arguments, "--save-maps", str(tmp_path / "maps.h5"), "--out", str(tmp_path / "saved"))
    for world_size in (1, 2):
        read = ("--maps", str(tmp_path / "maps.h5"), "--out", str(tmp_path / str(world_size)))
        on_processes(world_size, evaluated, *arguments, *read)
    assert outcome(tmp_path / "2") == outcome(tmp_path / "1")


@pytest.mark.slow
def test_started_by_torchrun(runs: Path, tmp_path: Path) -> None:
    arguments = ("--run", str(runs / "two"), *ALONE, "--out")
    done = subprocess.run(
        [*TORCHRUN, str(ROOT / "evaluate.py"), *arguments, str(tmp_path / "two")], capture_output=True, text=True,
        check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report: ") == 1
    on_processes(1, evaluated, *arguments, str(tmp_path / "one"))
    assert outcome(tmp_path / "two") == outcome(tmp_path / "one")


@pytest.mark.parametrize("script", [study, part_thresholds])
def test_scripts_that_know_of_one_process(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    needed = ["a.yaml", "--out", "nowhere"] if script is study else ["--run", "nowhere"]
    monkeypatch.setattr(sys, "argv", [script.__name__, *needed])
    with pytest.raises(SystemExit, match="2"):
        script.main()
    assert f"{script.__name__}{'.py' if script is study else ''} runs in one process" in capsys.readouterr().err
