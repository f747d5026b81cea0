"""The rules of the house that a machine can check, on every file that is or would be committed."""

import ast
import re
import subprocess
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ABOVE = frozenset({"engine", "commands", "slurm", "benchmarks"})
PACKAGES = ABOVE | {"common", "models", "losses", "datasets", "explain", "metrics", "report"}
NEVER = {
    "common": PACKAGES - {"common"},
    "models": PACKAGES - {"common", "models"},
    "losses": ABOVE | {"report"},
    "datasets": ABOVE | {"report"},
    "metrics": ABOVE | {"report", "models", "explain"},
    "explain": ABOVE,
    "report": PACKAGES - {"common", "report"},
    "engine": frozenset({"commands", "slurm", "benchmarks", "report", "argparse"}),
    "engine/run": frozenset({"engine.training", "engine.evaluation", "engine.explanation"}),
    "engine/evaluation": frozenset({"engine.training", "engine.explanation"}),
    "engine/training": frozenset({"engine.explanation"}),
    "engine/explanation": frozenset({"engine.training"}),
    "commands": frozenset({"slurm", "benchmarks"}),
    "benchmarks": frozenset({"slurm", "tests"}),
}
"""Folder -> packages that no file below it imports. Scripts at the root are for nobody to import but scripts."""
LONGEST_FILE = 300
# Put together, so that this file does not hold what it looks for.
MACHINE_TRACES = re.compile(
    r"(?<![\w.~-])/(?:wo" + r"rk|ro" + r"ot)/|(?<![\w.~-])/tm" + r"p/[a-z]|pypi\." + r"org|python" + r"hosted|"
    r"deb\.deb" + r"ian\.org|npm" + r"js"
)


def committed(pattern: str = "*") -> list[Path]:
    """Files in the index, and new ones git does not ignore."""
    try:
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", pattern]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.split("\0") if name]
    return [path for path in paths if path.is_file()]


def imported(source: str) -> set[str]:
    """The modules a file imports, anywhere in it, each with the packages it lies in."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    parts = [module.split(".") for module in modules]
    return {".".join(words[:count]) for words in parts for count in range(1, len(words) + 1)}


def wrong_imports(file: str, source: str, scripts: frozenset[str] = frozenset()) -> set[str]:
    """What a file, named from the root, imports against the direction between packages."""
    barred = frozenset().union(*(names for folder, names in NEVER.items() if file.startswith(f"{folder}/")))
    return imported(source) & (barred | scripts)


def import_cycles(imports: Mapping[str, Set[str]]) -> list[str]:
    """The modules that import themselves by way of others."""

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        waiting = [start]
        while waiting:
            new = (imports.get(waiting.pop(), frozenset()) & imports.keys()) - found
            found |= new
            waiting += new
        return found

    return sorted(module for module in imports if module in reached(module))


def traces(text: str) -> Iterator[str]:
    """Machine paths and registry hosts in a text."""
    return (match.group() for match in MACHINE_TRACES.finditer(text))


def test_no_long_python_file() -> None:
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in committed("*.py")}
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE} == {}


def test_imports_run_one_way() -> None:
    scripts = frozenset(path.stem for path in ROOT.glob("*.py"))
    wrong = {}
    for path in committed("*.py"):
        name = path.relative_to(ROOT).as_posix()
        barred = frozenset() if name == "slurm/submit.py" else scripts  # it runs train.py
        if name.split("/")[0] in PACKAGES and (names := wrong_imports(name, path.read_text(), barred)):
            wrong[name] = names
    assert wrong == {}


def test_no_import_cycle() -> None:
    imports = {}
    for path in committed("*.py"):
        name = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        if name.split(".")[0] in PACKAGES and not name.endswith("__init__"):
            imports[name] = imported(path.read_text())
    assert len(imports) > 100
    assert import_cycles(imports) == []


def test_an_import_cycle_is_seen() -> None:
    assert import_cycles({"a": {"b"}, "b": {"c"}, "c": {"b", "x"}, "d": {"a"}}) == ["b", "c"]


def test_every_package_is_known() -> None:
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} <= PACKAGES


@pytest.mark.parametrize(
    ("file", "source", "wrong"),
    [
        ("models/a.py", "def f():\n    from losses.config import LossConfig", {"losses"}),
        ("metrics/maps/a.py", "import engine.training.trainer as trainer", {"engine"}),
        ("common/a.py", "from models import two_stage", {"models"}),
        ("models/a.py", "import torch\nfrom . import engine\nfrom models.engine import x", set()),
        ("engine/training/a.py", "import models, losses\nfrom engine.run import config", set()),
        ("engine/run/a.py", "from engine import training", {"engine.training"}),
        ("engine/evaluation/a.py", "import argparse", {"argparse"}),
        ("engine/explanation/a.py", "from report.html import Card", {"report"}),
    ],
)
def test_a_wrong_import_is_seen(file: str, source: str, wrong: set[str]) -> None:
    assert wrong_imports(file, source) == wrong


def test_no_machine_paths_or_registry_hosts() -> None:
    wrong = {}
    for path in committed():
        try:
            found = list(traces(path.read_text()))
        except UnicodeDecodeError:
            continue  # an image
        if found:
            wrong[path.relative_to(ROOT).as_posix()] = found
    assert wrong == {}


@pytest.mark.parametrize("tail", ["wo" + "rk/main", "ro" + "ot/x", "tm" + "p/x"])
def test_a_machine_path_is_seen(tail: str) -> None:
    assert list(traces(f"cd /{tail}"))
    assert not list(traces(f"runs/{tail}"))
