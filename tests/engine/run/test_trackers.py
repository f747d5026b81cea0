"""Runs in Weights & Biases (every row, learning rates, W&B out of reach) and TensorBoard."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from common.errors import UserError
from engine.run.checkpointing import read_checkpoint
from engine.run.command_line import parse_config
from engine.run.config import RunConfig, TrainConfig, WandbConfig
from engine.run.folder import LAST
from engine.run.trackers import wandb_mode
from engine.run.tracking import Tracker
from tests.tiny import Session, resumed, tiny_config


class Run:
    """As W&B: rows of one step are merged, and a row of an earlier step is dropped."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.rows: dict[int, dict[str, Any]] = {}
        self.axes: dict[str, str] = {}

    def log(self, row: dict[str, Any], step: int) -> None:
        if step >= max(self.rows, default=0):
            self.rows[step] = self.rows.get(step, {}) | row

    def define_metric(self, name: str, step_metric: str) -> None:
        self.axes[name] = step_metric


class Service:
    """The module wandb, reachable or not."""

    class Error(Exception):
        pass

    def __init__(self) -> None:
        self.errors = SimpleNamespace(Error=self.Error)
        self.asked: list[dict[str, Any]] = []
        self.runs: list[Run] = []
        self.problem: Exception | None = None

    def init(self, **how: Any) -> Run:
        self.asked.append(how)
        if self.problem and how["mode"] == "online":
            raise self.problem
        self.runs.append(Run(how["id"] or "abc"))
        return self.runs[-1]


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    service = Service()
    monkeypatch.setitem(sys.modules, "wandb", service)
    yield service


TAGS = {"wandb.tags": ["birds", "first"], "wandb.job_type": "train"}


def test_a_resumed_run_goes_on_under_its_id(tmp_path: Path, service: Service) -> None:
    """Its id is in the checkpoint, and the resumed run passes that id."""
    config = tiny_config(tmp_path, {"train.epochs": 1, "wandb.mode": "offline", **TAGS})
    Session(config).go()
    assert Session(resumed(config)).trainer.progress.wandb_id == "abc"
    Tracker(tmp_path, config, read_checkpoint(tmp_path / LAST).progress["wandb_id"])
    assert service.asked[0]["tags"] == ["birds", "first"] and service.asked[0]["job_type"] == "train"
    assert (service.asked[0]["id"], service.asked[-1]["id"], service.asked[-1]["resume"]) == (None, "abc", "allow")


def test_it_gets_every_row_with_the_learning_rates(tmp_path: Path, service: Service) -> None:
    """Two epochs of four steps, validated every third step too; the rates are those of the last step."""
    keys = {"wandb.mode": "online", "train.eval_every_steps": 3, "optim.head_lr_mult": 10.0, "optim.schedule": "step"}
    keys |= {"optim.step_epochs": 1, "optim.step_decay": 0.5, "optim.freeze_stage_1": True}
    session = Session(tiny_config(tmp_path, keys)).go()
    (run,) = service.runs
    assert list(run.rows) == [3, 4, 6, 8] and repr([*run.rows.values()]) == repr(session.tracker.rows())
    assert [row["epoch"] for row in run.rows.values()] == [0.75, 1, 1.5, 2] and run.axes == {"*": "epoch"}
    assert all("val/accuracy" in row for row in run.rows.values())
    rates = {name: [run.rows[step][f"lr/{name}"] for step in (4, 8)] for name in ("head", "stage_1", "stage_2")}
    assert rates == {"head": [1e-2, 5e-3], "stage_1": [1e-3, 5e-4], "stage_2": [1e-3, 5e-4]}
    assert run.rows[4]["lr/prototypes"] == run.rows[4]["lr/modulation"] == 1e-3


@pytest.mark.parametrize(
    "problem", [Service.Error("No API key configured.\n Use `wandb login`"), ConnectionError("no such host")]
)
def test_a_run_goes_on_offline(
    problem: Exception, tmp_path: Path, service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    service.problem = problem
    session = Session(tiny_config(tmp_path, {"train.epochs": 1, "model.name": "vit", "train.trackers": ["wandb"]})).go()
    assert [how["mode"] for how in service.asked] == ["online", "offline"]
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("wandb.mode=online")]
    assert len(said) == 1 and str(problem).split()[0] in said[0] and "wandb sync" in said[0]
    assert repr([*service.runs[0].rows.values()]) == repr(session.tracker.rows())


@pytest.mark.parametrize(
    ("trackers", "mode", "wanted"),
    [
        (("jsonl",), "auto", "off"), (("wandb",), "auto", "online"), (("wandb", "jsonl"), "offline", "offline"),
        (("jsonl",), "online", "online"), (("jsonl", "tensorboard"), "auto", "off"), (("jsonl",), "off", "off"),
    ],
)  # fmt: skip
def test_what_turns_wandb_on(trackers: Any, mode: Any, wanted: str) -> None:
    config = RunConfig(train=TrainConfig(trackers=trackers), wandb=WandbConfig(mode=mode))
    assert wandb_mode(config) == wanted


def test_trackers_that_cannot_be() -> None:
    with pytest.raises(UserError, match="train.trackers names wandb, but wandb.mode=off"):
        parse_config(["--train.trackers=[wandb]", "--wandb.mode=off"])
    with pytest.raises(UserError, match="train.trackers"):
        parse_config(["--train.trackers=[mlflow]"])


def test_tensorboard_shows_the_rows_of_metrics_jsonl(tmp_path: Path) -> None:
    """Also after a run was killed and resumed from an earlier checkpoint, whose later rows are written again."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = tiny_config(tmp_path, {"train.trackers": ["jsonl", "tensorboard"]})
    killed, resumed_run = Tracker(tmp_path, config), Tracker(tmp_path, config)
    killed.truncate(0)
    for epoch, step, loss in ((1, 4, 0.5), (1.5, 6, 9.0), (2, 8, 9.0)):
        killed.log({"epoch": epoch, "step": step, "train/loss": loss, "val/accuracy": 0.25})
    resumed_run.truncate(1)
    resumed_run.log({"epoch": 2, "step": 9, "train/loss": 0.375})
    Image.new("RGB", (6, 4), (255, 0, 0)).save(tmp_path / "sheet.png")
    resumed_run.image("sheet", tmp_path / "sheet.png", 9)
    resumed_run.finish({"test/accuracy": 0.75, "model": "vit"})
    shown = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    read = {tag: [(e.step, e.value) for e in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}
    for tag in ("epoch", "train/loss", "val/accuracy"):
        assert read[tag] == [(row["step"], row[tag]) for row in resumed_run.rows() if tag in row]
    assert read["train/loss"] == [(4, 0.5), (9, 0.375)] and read["best/test/accuracy"] == [(9, 0.75)]
    (sheet,) = shown.Images("sheet")
    assert (sheet.step, sheet.width, sheet.height) == (9, 6, 4)


@pytest.mark.parametrize("package", ["wandb", "tensorboard"])
def test_a_tracker_that_is_not_installed(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (package, "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"{package} is not installed; pip install '\.\[{package}\]'"):
        Tracker(tmp_path, tiny_config(tmp_path, {"train.trackers": [package]})).truncate(0)
