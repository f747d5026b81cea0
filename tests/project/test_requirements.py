"""pyproject.toml, the pins, their checksums, environment.yml, the Makefile and what is installed say the same."""

import platform
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions, version
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.project.lock import CONSTRAINTS, HEADER, LOCK, ROOT, locked, pins

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
DIRECT = [Requirement(text) for texts in (PROJECT["dependencies"], *EXTRAS.values()) for text in texts]
PIN_LINES = CONSTRAINTS.read_text().splitlines()
PINS = {canonicalize_name(pin.name): pin for pin in pins(CONSTRAINTS.read_text())}
LOCKED = LOCK.read_text()
INSTALLERS = {"pip", "setuptools"}
"""They come with the interpreter, in any version that installs the rest."""
PLATFORMS = {"linux": "Linux", "darwin": "Darwin"}


def environment(**changes: str) -> dict[str, str]:
    """The markers of this machine, with changes."""
    return {name: str(value) for name, value in default_environment().items()} | changes


def needed(markers: Mapping[str, str]) -> set[str]:
    """Canonical names of everything that a machine with these markers installs for the project, extras included."""
    found: set[tuple[str, frozenset[str]]] = set()
    waiting = list(DIRECT)
    while waiting:
        requirement = waiting.pop()
        key = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if key in found:
            continue
        found.add(key)
        for text in _requires(requirement.name):
            child = Requirement(text)
            extras = requirement.extras or {""}
            if child.marker is None or any(child.marker.evaluate({**markers, "extra": e}) for e in extras):
                waiting.append(child)
    return {name for name, _ in found} - {"pip"}


def _requires(name: str) -> list[str]:
    """Of an installed package; what only other machines install has no metadata here."""
    try:
        return distribution(name).requires or []
    except PackageNotFoundError:
        return []


def pinned(markers: Mapping[str, str], lock: str = LOCKED) -> set[str]:
    """Canonical names of the entries of requirements.lock that apply to a machine."""
    entries = [Requirement(line.removesuffix(" \\")) for line in lock.splitlines() if re.match(r"\w", line)]
    return {canonicalize_name(e.name) for e in entries if e.marker is None or e.marker.evaluate(dict(markers))}


def test_constraints_are_pins_alone() -> None:
    pattern = r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+(; (sys_platform|python_version) (==|>=) \"[a-z0-9.]+\")?"
    assert [line for line in PIN_LINES if not re.fullmatch(pattern, line)] == []
    assert len(PINS) == len(PIN_LINES), "a name stands twice"


def test_every_pin_has_checksums() -> None:
    """What differs is renewed by `python -m tests.project.lock`."""
    head, *entries = re.split(r"(?m)^(?=[A-Za-z0-9])", LOCKED)
    assert head == HEADER and len(entries) == len(PINS)
    for entry, pin in zip(entries, PINS.values(), strict=True):
        first, *digests = entry.rstrip("\n").split(" \\\n    ")
        locked_pin = Requirement(first)
        assert (locked_pin.name, locked_pin.specifier) == (pin.name, pin.specifier)
        assert pin.marker is None or locked_pin.marker == pin.marker
        assert digests and all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", digest) for digest in digests), first


def wheel(name: str, digest: str) -> dict[str, Any]:
    return {"filename": name, "hashes": {"sha256": digest}}


def test_an_entry_of_the_lock() -> None:
    files = [
        wheel("a-1.0-py3-none-any.whl", "f0"), wheel("a-1.0.tar.gz", "f1"), wheel("a-1.1-py3-none-any.whl", "f2"),
        wheel("a-1.0-cp310-cp310-macosx_11_0_arm64.whl", "f3"), wheel("a-1.0-cp39-abi3-win_amd64.whl", "c4"),
        wheel("a-1.0-cp313-cp313t-win_amd64.whl", "a5"), wheel("a-1.0-pp311-pypy311_pp73-win_amd64.whl", "f6"),
        wheel("a-1-0-none-any.whl", "f7"),
    ]  # fmt: skip
    assert locked(Requirement("a==1.0"), files) == (
        "a==1.0 \\\n    --hash=sha256:a5 \\\n    --hash=sha256:c4 \\\n    --hash=sha256:f0\n"
    )
    linux = [wheel("a-1.0-py3-none-manylinux_2_28_x86_64.whl", "f0"), wheel("a-1.0-py3-none-win_amd64.whl", "f1")]
    assert locked(Requirement("a==1.0"), linux).startswith('a==1.0 ; sys_platform == "linux" \\\n')
    with pytest.raises(ValueError, match="no wheel"):
        locked(Requirement("a==2.0"), files)


@pytest.mark.parametrize("requirement", DIRECT, ids=str)
def test_direct_dependency_has_a_lower_bound_and_a_pin_above_it(requirement: Requirement) -> None:
    assert [specifier.operator for specifier in requirement.specifier] == [">="]
    assert requirement.specifier.contains(version_of(requirement.name), prereleases=True)


def version_of(name: str) -> str:
    """The pinned version."""
    (specifier,) = PINS[canonicalize_name(name)].specifier
    return specifier.version


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
def test_all_that_a_machine_needs_is_pinned(platform: str, python: str) -> None:
    markers = environment(
        sys_platform=platform, platform_system=PLATFORMS[platform], python_version=python,
        python_full_version=f"{python}.0", implementation_version=f"{python}.0",
        platform_machine="arm64" if platform == "darwin" else "x86_64",
    )  # fmt: skip
    assert needed(markers) - pinned(markers) == set()


def test_what_is_needed_is_installed_as_pinned() -> None:
    names = needed(environment()) - INSTALLERS
    wrong = {name: version(name) for name in names if not PINS[name].specifier.contains(version(name))}
    assert wrong == {}, "installed in another version than pinned"


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64" or sys.version_info[:2] != (3, 11),
    reason="the pins were resolved for Python 3.11 on 64-bit Linux",
)
def test_nothing_is_pinned_that_is_not_needed() -> None:
    assert pinned(environment()) - needed(environment()) == set()


def test_conda_and_make_install_the_same() -> None:
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    python, pip_section = conda[0], conda[-1]["pip"]
    assert PYPROJECT["build-system"]["requires"] == [str(PINS["setuptools"])]
    assert PROJECT["requires-python"] == ">=" + python.removeprefix("python=")
    assert pip_section == ["-r requirements.lock"]
    makefile = (ROOT / "Makefile").read_text()
    assert "pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock\n" in makefile
    assert f"sys.version_info < ({python.removeprefix('python=').replace('.', ', ')})" in makefile


def test_the_oldest_torch_is_tested_with_the_other_pins(tmp_path: Path) -> None:
    file = tmp_path / "requirements.txt"
    subprocess.run(["make", f"FLOOR={tmp_path}", str(file)], cwd=ROOT, check=True, timeout=60)
    chosen = {canonicalize_name(pin.name): pin for pin in pins(file.read_text())}
    lowest = {pin.name: pin for pin in map(Requirement, PROJECT["dependencies"])}
    for name in ("torch", "torchvision"):
        assert str(chosen.pop(name)) == str(lowest[name]).replace(">=", "==") + ".*"
    assert chosen.items() <= PINS.items()
    left_out = PINS.keys() - chosen.keys()
    rest = {name for name in left_out if not name.startswith(("cuda-", "nvidia-"))}
    assert rest == {"torch", "torchvision", "triton", "setuptools"}


def test_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (str(citation["version"]), citation["license"]) == (PROJECT["version"], PROJECT["license"])


def test_no_installed_package_shadows_ours() -> None:
    ours = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert {"datasets", "models"} <= ours
    assert ours & packages_distributions().keys() == set()
