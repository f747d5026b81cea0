"""Methods and their options on a command line: `--method rollout --head-fusion max --discard-ratio 0.9`.

Options are the fields of the methods' dataclasses. A flag applies to every chosen method that has the option.
"""

import argparse
from collections.abc import Iterable, Mapping
from typing import Any

from common.errors import UserError
from explain import METHODS, Explainer, build_method
from explain.types import describe


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every option of every method. Flags that are not given do not appear in the namespace."""
    group = parser.add_argument_group("options of methods", "each applies to all chosen methods that have it")
    methods_with: dict[str, list[str]] = {}
    for method in METHODS:
        for option in METHODS[method].options():
            methods_with.setdefault(option, []).append(method)
    for option, methods in sorted(methods_with.items()):
        values = "; ".join(dict.fromkeys(describe(METHODS[method].options()[option]) for method in methods))
        text = f"{values}{_default(option, methods)} ({', '.join(methods)})"
        group.add_argument(_flag(option), dest=option, metavar="VALUE", default=argparse.SUPPRESS, help=text)


def build_methods(names: Iterable[str], given: Mapping[str, Any]) -> dict[str, Explainer]:
    """The named methods with their options; ["all"]: all methods.

    `given`: the parsed flags; those of `add_options` are still text.
    Raises UserError for an unknown method, a value of the wrong type, or an option that no chosen method has.
    """
    names = list(names)
    if "all" in names and names != ["all"]:
        raise UserError(f"--method: all includes every method; leave out {' '.join(n for n in names if n != 'all')}")
    names = list(METHODS) if names == ["all"] else names
    chosen = {name: {option: given[option] for option in METHODS[name].options() if option in given} for name in names}
    options = {option for name in METHODS for option in METHODS[name].options()}
    used = {option for texts in chosen.values() for option in texts}
    for option in sorted((options & given.keys()) - used):
        raise UserError(f"{_flag(option)}: none of the chosen methods has this option ({', '.join(chosen)})")
    return {name: build_method(name, **_parse(name, texts)) for name, texts in chosen.items()}


def _default(option: str, methods: Iterable[str]) -> str:
    """The default of an option as help shows it; "" for none, or if it differs between methods."""
    values = {getattr(METHODS[method], option, None) for method in methods}
    value = values.pop()
    return "" if values or value in ("", None) else f"; default: {str(value).lower()}"


def _parse(method: str, texts: Mapping[str, str]) -> dict[str, Any]:
    if not texts:
        return {}
    from jsonargparse import ArgumentError, ArgumentParser  # slow to import

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(METHODS[method])
    values: dict[str, Any] = {}
    for option, text in texts.items():
        try:
            values[option] = parser.parse_args([f"--{option}={text}"])[option]
        except ArgumentError:
            known = describe(METHODS[method].options()[option])
            raise UserError(f"{_flag(option)}: {text!r} does not fit; {method} takes {known}") from None
    return values


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"
