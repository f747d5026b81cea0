"""Methods and their options from a command line: `--method rollout --head-fusion max --discard-ratio 0.9`.

An option is a field of a method's dataclass; on the command line it goes to every chosen method that has it.
"""

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin

from jsonargparse import ArgumentError, ArgumentParser

from common.errors import UserError
from explain import METHODS, Explainer, build_method


def add_options(parser: argparse.ArgumentParser) -> None:
    """One flag for every option of every method. Those that are not given are no attributes of the namespace."""
    group = parser.add_argument_group("options of methods", "each goes to all chosen methods that have it")
    owners: dict[str, list[str]] = {}
    for method in METHODS:
        for option in _types(method):
            owners.setdefault(option, []).append(method)
    for option, methods in sorted(owners.items()):
        values = "; ".join(dict.fromkeys(_wording(_types(method)[option]) for method in methods))
        text = f"{values} ({', '.join(methods)})"
        group.add_argument(_flag(option), dest=option, metavar="VALUE", default=argparse.SUPPRESS, help=text)


def build_methods(names: Iterable[str], given: Mapping[str, Any]) -> dict[str, Explainer]:
    """The named methods with their options; `given`: the parsed flags, those of `add_options` as text.

    Raises UserError for an unknown method, a value that does not fit, or an option that none of the methods has.
    """
    names = list(dict.fromkeys(names))
    wanted = {method: {option: given[option] for option in _types(method) if option in given} for method in names}
    every = {option for method in METHODS for option in _types(method)}
    for option in sorted(every & given.keys() - {option for options in wanted.values() for option in options}):
        raise UserError(f"{_flag(option)}: none of the chosen methods has this option ({', '.join(names)})")
    return {method: build_method(method, **_parsed(method, options)) for method, options in wanted.items()}


def _types(method: str) -> dict[str, Any]:
    return {field.name: field.type for field in fields(METHODS[method])}  # type: ignore[arg-type]  # all are dataclasses


def _parsed(method: str, texts: Mapping[str, str]) -> dict[str, Any]:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(METHODS[method])
    values = {}
    for option, text in texts.items():
        try:
            values[option] = parser.parse_args([f"--{option}={text}"])[option]
        except ArgumentError:
            wording = _wording(_types(method)[option])
            raise UserError(f"{_flag(option)}: {text!r} does not fit; {method} takes {wording}") from None
    return values


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def _wording(kind: Any) -> str:
    """A type as a user writes its values: "mean | max | min", "float"."""
    if get_origin(kind) is Literal:
        return " | ".join(str(value) for value in get_args(kind) if value != "")
    if kind is bool:
        return "true | false"
    members = [member for member in get_args(kind) if member is not type(None)]
    return " | ".join(map(_wording, members)) if members else str(kind.__name__)
