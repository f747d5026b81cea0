"""pyproject.toml, constraints.txt, environment.yml, the Makefile and what is installed say the same."""

import platform
import re
import sys
import tomllib
from importlib.metadata import distribution, packages_distributions, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
DIRECT = [Requirement(text) for texts in (PROJECT["dependencies"], *EXTRAS.values()) for text in texts]
PIN_LINES = (ROOT / "constraints.txt").read_text().splitlines()
PINS = {canonicalize_name(name): pin for name, _, pin in (line.partition("==") for line in PIN_LINES)}
INSTALLERS = {"pip", "setuptools"}
"""They install the rest, and come with the interpreter or with torch."""


def needed() -> set[str]:
    """Canonical names of everything this machine installs for the project, extras included."""
    found: set[tuple[str, frozenset[str]]] = set()
    waiting = list(DIRECT)
    while waiting:
        requirement = waiting.pop()
        key = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if key in found:
            continue
        found.add(key)
        for text in distribution(requirement.name).requires or []:
            child = Requirement(text)
            if child.marker is None or any(child.marker.evaluate({"extra": e}) for e in requirement.extras or {""}):
                waiting.append(child)
    return {name for name, _ in found} - INSTALLERS


def test_constraints_are_pins_alone() -> None:
    assert [line for line in PIN_LINES if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)] == []
    assert len(PINS) == len(PIN_LINES), "a name stands twice"


@pytest.mark.parametrize("requirement", DIRECT, ids=str)
def test_direct_dependency_has_a_lower_bound_and_a_pin_above_it(requirement: Requirement) -> None:
    assert [specifier.operator for specifier in requirement.specifier] == [">="]
    assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)], prereleases=True)


def test_all_that_is_needed_is_pinned_and_installed_as_pinned() -> None:
    names = needed()
    assert names - PINS.keys() == set(), "needed, but not pinned"
    wrong = {name: version(name) for name in names if not SpecifierSet(f"=={PINS[name]}").contains(version(name))}
    assert wrong == {}, "installed in another version than pinned"


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64" or sys.version_info[:2] != (3, 11),
    reason="the pins were resolved for Python 3.11 on 64-bit Linux",
)
def test_nothing_is_pinned_that_is_not_needed() -> None:
    assert PINS.keys() - needed() == set()


def test_conda_and_make_install_the_same() -> None:
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    python, pip_section = conda[0], conda[-1]["pip"]
    assert PROJECT["requires-python"] == ">=" + python.removeprefix("python=")
    assert pip_section == ["-c constraints.txt", f".[{','.join(EXTRAS)}]"]
    makefile = (ROOT / "Makefile").read_text()
    assert f"EXTRAS := {','.join(EXTRAS)}\n" in makefile
    assert f"sys.version_info < ({python.removeprefix('python=').replace('.', ', ')})" in makefile


def test_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (str(citation["version"]), citation["license"]) == (PROJECT["version"], PROJECT["license"])


def test_no_installed_package_shadows_ours() -> None:
    ours = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert {"datasets", "models"} <= ours
    assert ours & packages_distributions().keys() == set()
