"""The one error a user is meant to read."""

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class UserError(ValueError):
    """Bad input: one line that names the file, key or flag and says what to do about it."""


def exit_on_user_error(main: Callable[P, R]) -> Callable[P, R]:
    """Make a script's main end with one clear line and exit code 2, without a traceback, on a UserError."""

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise SystemExit(130) from None

    return wrapped
