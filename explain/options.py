"""Methods and their options on a command line: `--method rollout --head-fusion max --discard-ratio 0.9`.

Options are the fields of the methods' dataclasses. A flag applies to every chosen method that has the option.
"""

import argparse
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args, get_origin

from jsonargparse import ArgumentError, ArgumentParser

from common.errors import UserError
from explain import METHODS, Explainer, build_method


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every option of every method. Flags that are not given do not appear in the namespace."""
    group = parser.add_argument_group("options of methods", "each applies to all chosen methods that have it")
    methods_with: dict[str, list[str]] = {}
    for method in METHODS:
        for option in METHODS[method].options():
            methods_with.setdefault(option, []).append(method)
    for option, methods in sorted(methods_with.items()):
        values = "; ".join(dict.fromkeys(_describe(METHODS[method].options()[option]) for method in methods))
        text = f"{values} ({', '.join(methods)})"
        group.add_argument(_flag(option), dest=option, metavar="VALUE", default=argparse.SUPPRESS, help=text)


def build_methods(names: Iterable[str], given: Mapping[str, Any]) -> dict[str, Explainer]:
    """The named methods with their options. `given`: the parsed flags; those of `add_options` are still text.

    Raises UserError for an unknown method, a value of the wrong type, or an option that no chosen method has.
    """
    chosen = {name: {option: given[option] for option in METHODS[name].options() if option in given} for name in names}
    options = {option for name in METHODS for option in METHODS[name].options()}
    used = {option for texts in chosen.values() for option in texts}
    for option in sorted((options & given.keys()) - used):
        raise UserError(f"{_flag(option)}: none of the chosen methods has this option ({', '.join(chosen)})")
    return {name: build_method(name, **_parse(name, texts)) for name, texts in chosen.items()}


def _parse(method: str, texts: Mapping[str, str]) -> dict[str, Any]:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(METHODS[method])
    values = {}
    for option, text in texts.items():
        try:
            values[option] = parser.parse_args([f"--{option}={text}"])[option]
        except ArgumentError:
            known = _describe(METHODS[method].options()[option])
            raise UserError(f"{_flag(option)}: {text!r} does not fit; {method} takes {known}") from None
    return values


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def _describe(kind: Any) -> str:
    """The values of a type as a user writes them: "mean | max | min", "float"."""
    if get_origin(kind) is Literal:
        return " | ".join(str(value) for value in get_args(kind) if value != "")
    if kind is bool:
        return "true | false"
    members = [member for member in get_args(kind) if member is not type(None)]
    return " | ".join(map(_describe, members)) if members else str(kind.__name__)
