"""Python files of a user that register data sets, models, metrics or methods: `--plugin my_reader.py`.

The flag is the same for all scripts and may be given several times. Installed packages can do without it, by an entry
point of the group `faithful_vit.plugins` that names a module. A plugin is imported, never copied into a run.
"""

import functools
import importlib.util
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import ParamSpec, TypeVar

from common.errors import UserError

P = ParamSpec("P")
R = TypeVar("R")
FLAG, GROUP = "--plugin", "faithful_vit.plugins"
_LOADED: dict[str, Path] = {}
"""Module name -> file."""


def with_plugins(main: Callable[P, R]) -> Callable[P, R]:
    """Decorate a script's main: import the plugins and take their flags out of `sys.argv` before it runs."""

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        for entry in entry_points(group=GROUP):
            entry.load()
        sys.argv[1:] = load_plugins(sys.argv[1:])
        return main(*args, **kwargs)

    return wrapped


def load_plugins(arguments: list[str]) -> list[str]:
    """Import the file of every `--plugin FILE` or `--plugin=FILE`; returns the other arguments. Raises UserError."""
    others, given = [], iter(arguments)
    for argument in given:
        flag, equals, value = argument.partition("=")
        if flag != FLAG:
            others.append(argument)
            continue
        file = value if equals else next(given, "")
        if not file or file.startswith("--"):
            raise UserError(f"{FLAG} needs a Python file")
        _load(Path(file).expanduser().resolve())
    return others


def plugin_arguments() -> list[str]:
    """The flags of the plugins that are loaded, to be given again."""
    return [argument for path in _LOADED.values() for argument in (FLAG, str(path))]


def _load(path: Path) -> None:
    name = path.stem
    if _LOADED.get(name) == path:
        return
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"{FLAG}: {path} is not a Python file; give the path of a .py file")
    other = importlib.util.find_spec(name) if name.isidentifier() else None
    if not name.isidentifier() or name in sys.modules or (other and other.origin != str(path)):
        raise UserError(f"{FLAG}: {path.name} has the name of another module; rename it, for example my_{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.append(str(path.parent))  # for loading processes that are spawned, and files that it imports
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        sys.path.remove(str(path.parent))
        raise UserError(f"{FLAG}: {path} failed{_line(error, path)} ({type(error).__name__}: {error})") from None
    _LOADED[name] = path


def _line(error: Exception, path: Path) -> str:
    """The line of the file at which it failed, as " in line 3"."""
    lines, trace = [], error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == str(path):
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f" in line {lines[-1]}" if lines else ""
