"""Command-line parser of the scripts."""

import argparse
import sys
from pathlib import Path
from typing import Any, NoReturn

from common.errors import UserError
from common.files import path_problem


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are UserErrors, and whose usage line can be typed: "python -m commands.NAME"."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # The module that `python -m` runs; None for a script. Newer versions of Python do this themselves.
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        if spec is not None and spec.name.startswith(("commands.", "slurm.", "benchmarks.")):
            kwargs.setdefault("prog", f"python -m {spec.name}")
        super().__init__(*args, **kwargs)

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        """Convert a value as argparse does, but refuse an empty path, which pathlib takes as the current folder."""
        if action.type is Path and (problem := "is empty" if not arg_string.strip() else path_problem(arg_string)):
            raise argparse.ArgumentError(action, f"the path {problem}")
        return super()._get_value(action, arg_string)

    def error(self, message: str) -> NoReturn:
        """Raise UserError with argparse's message."""
        raise UserError(message)
