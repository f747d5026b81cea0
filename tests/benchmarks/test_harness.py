"""What the benchmarks share: measuring, comparing, writing."""

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import harness
from benchmarks.harness import MIB, Case, Section
from common.errors import UserError

CPU = torch.device("cpu")


def case(seconds: list[float], images: int = 1, peak: int = 0, **labels: Any) -> Case:
    return Case(labels, images, lambda _: lambda: None, peak, seconds)


def test_peak_memory_counts_what_is_alive_at_once() -> None:
    def work() -> None:
        for _ in range(3):
            torch.ones(2**20)  # 4 MiB, freed at once
        kept = [torch.ones(2**18) for _ in range(2)]  # 2 MiB
        kept.append(torch.ones(2**20))

    assert harness.peak_bytes(work, CPU) == 6 * MIB


def test_rounds_are_interleaved() -> None:
    calls: list[str] = []

    def prepare(name: str) -> Callable[[int], Callable[[], None]]:
        return lambda number: lambda: calls.append(f"{name}{number}")

    cases = [Case({}, 1, prepare("a")), Case({}, 1, prepare("b"))]
    harness.measure(cases, 2, CPU, warm_up=1)
    memory, rounds = ["a0", "a0", "b0", "b0"], ["a0", "b0", "a1", "b1"]
    assert calls == memory + rounds
    assert [len(each.seconds) for each in cases] == [2, 2]


def test_only_the_work_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0

    def wait(seconds: float) -> None:
        nonlocal clock
        clock += seconds

    def prepare(_: int) -> Callable[[], None]:
        wait(100)
        return lambda: wait(7)

    monkeypatch.setattr(harness.time, "perf_counter", lambda: clock)
    slow = Case({}, 1, prepare)
    harness.measure([slow], 1, CPU)
    assert slow.seconds == [7]


def test_ratios_are_taken_within_a_round_and_per_image() -> None:
    baseline = case([2.0, 20.0, 4.0])
    assert case([1.0, 10.0, 1.0]).times_faster(baseline) == 2
    assert case([1.0, 10.0, 1.0], images=3).times_faster(baseline) == 6
    assert baseline.times_faster(case([4.0, 40.0, 8.0], images=4)) == 0.5


def test_the_measurements_of_a_row() -> None:
    row = case([4.0, 1.0, 2.0], images=8, peak=5 * MIB, path="packed").row(ratio=None)
    assert row["path"] == "packed" and row["ratio"] is None and row["seconds"] == [4, 1, 2]
    assert (row["images_per_second"], row["median_seconds"], row["min_seconds"], row["peak_MiB"]) == (4, 2, 1, 5)
    assert row["p90_seconds"] == pytest.approx(3.6)


@pytest.mark.parametrize("value", [0.2, torch.nan, torch.inf])
def test_other_numbers_end_the_benchmark(value: float, capsys: pytest.CaptureFixture[str]) -> None:
    harness.require_equal({"right": 0.1}, 0.1)
    with pytest.raises(SystemExit) as stopped:
        harness.require_equal({"right": 0.1, "wrong": value}, 0.1)
    assert stopped.value.code == 1
    assert "error: not the published numbers: wrong; no results written" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["v1.5", "v1.5.md", "v1.5.json"])
def test_the_report_is_printed_and_written(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"path": "packed", "median_seconds": 1234.5, "ratio": None, "peak": 0.12345, "seconds": [1.0, 2.0]}
    options = Namespace(batch=[1, 16], out=tmp_path / "new" / name, save=False)
    harness.report("Title", [Section("model", [row], ["a note"], {"extra": 3})], "How.", options, "stem")
    page = (tmp_path / "new" / "v1.5.md").read_text()
    assert capsys.readouterr().out == page + "\n"
    for line in ("# Title", "## model", "- a note", "How.", "Options: batch 1 16."):
        assert line in page.splitlines()
    assert "| path | median seconds | ratio | peak |\n" in page and "| packed | 1234 |  | 0.123 |\n" in page
    content = json.loads((tmp_path / "new" / "v1.5.json").read_text())
    (section,) = content["sections"]
    assert section["rows"] == [row] and section["details"] == {"extra": 3}
    assert content["machine"]["packages"]["torch"] and content["options"] == {"batch": [1, 16]}


def test_save_writes_into_the_folder_of_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    for save in (False, True):
        harness.report("Title", [Section("a", [{"b": 1}])], "", Namespace(out=None, save=save), "stem")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["stem.json", "stem.md"] * save


def test_a_device_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UserError, match="warp"):
        harness.start(Namespace(threads=0, device="warp"))
