"""The rules of the house that a machine can check, on every file that is or would be committed."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = frozenset({"common", "models", "losses", "datasets", "explain", "metrics", "engine", "report"})
NEVER = {
    "common": PACKAGES - {"common"},
    "models": PACKAGES - {"common", "models"},
    **dict.fromkeys(("losses", "datasets", "explain", "metrics", "report"), frozenset({"engine"})),
}
"""Package -> the packages of ours it must not import. Scripts at the root are for nobody to import but scripts."""
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
    """Top-level names of the modules a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.partition(".")[0])
    return found


def wrong_imports(package: str, source: str, scripts: frozenset[str] = frozenset()) -> set[str]:
    """What a file of `package` imports against the direction of the house."""
    return imported(source) & (NEVER.get(package, frozenset()) | scripts)


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
        package = path.relative_to(ROOT).parts[0]
        if package in PACKAGES and (names := wrong_imports(package, path.read_text(), scripts)):
            wrong[path.relative_to(ROOT).as_posix()] = names
    assert wrong == {}


def test_every_package_is_known() -> None:
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} <= PACKAGES


@pytest.mark.parametrize(
    ("package", "source", "wrong"),
    [
        ("models", "def f():\n    from losses.config import LossConfig", {"losses"}),
        ("metrics", "import engine.trainer as trainer", {"engine"}),
        ("common", "from models import two_stage", {"models"}),
        ("models", "import torch\nfrom . import engine\nfrom models.engine import x", set()),
        ("engine", "import models, losses", set()),
    ],
)
def test_a_wrong_import_is_seen(package: str, source: str, wrong: set[str]) -> None:
    assert wrong_imports(package, source) == wrong


def test_no_machine_paths_or_registry_hosts() -> None:
    wrong = {}
    for path in committed():
        try:
            found = list(traces(path.read_text()))
        except UnicodeDecodeError:
            continue  # a picture
        if found:
            wrong[path.relative_to(ROOT).as_posix()] = found
    assert wrong == {}


@pytest.mark.parametrize("tail", ["wo" + "rk/main", "ro" + "ot/x", "tm" + "p/x"])
def test_a_machine_path_is_seen(tail: str) -> None:
    assert list(traces(f"cd /{tail}"))
    assert not list(traces(f"runs/{tail}"))
