"""The exception for mistakes of the user, and how scripts print it."""

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from common.interrupts import second_interrupt_ends

P = ParamSpec("P")
R = TypeVar("R")
LONGEST = 2000
"""Maximum characters of a printed message."""


class UserError(ValueError):
    """Invalid input: one line that names the file, key or flag and what to do about it."""


def printable(text: str) -> str:
    """The text with control characters, line ends and marks that change its direction escaped as in Python."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def one_line(text: str) -> str:
    """The text on one line, with control characters escaped, so that file names cannot control the terminal."""
    shown = " ".join(text.split())
    return printable(shown[:LONGEST]) + "..." * (len(shown) > LONGEST)


def exit_on_user_error(main: Callable[P, R]) -> Callable[P, R]:
    """Decorate a script's main: a UserError prints one line and exits with code 2, without a traceback."""

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with second_interrupt_ends():
                return main(*args, **kwargs)
        except UserError as error:
            print(f"error: {one_line(str(error))}", file=sys.stderr)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise SystemExit(130) from None

    return wrapped
