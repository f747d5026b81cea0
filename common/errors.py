"""The one error a user is meant to read."""

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
LONGEST = 2000
"""Characters of a message."""


class UserError(ValueError):
    """Bad input: one line that names the file, key or flag and says what to do about it."""


def one_line(text: str) -> str:
    """The text as one line that a terminal only shows: what a file or its name holds must not steer it."""
    shown = " ".join(text.split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown[:LONGEST]) + "..." * (len(shown) > LONGEST)


def exit_on_user_error(main: Callable[P, R]) -> Callable[P, R]:
    """Make a script's main end with one clear line and exit code 2, without a traceback, on a UserError."""

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(f"error: {one_line(str(error))}", file=sys.stderr)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise SystemExit(130) from None

    return wrapped
