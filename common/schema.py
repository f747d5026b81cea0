"""Dataclasses from the JSON of files from anywhere."""

from collections.abc import Mapping
from typing import Any, TypeVar

from jsonargparse import ArgumentError, ArgumentParser

from common.errors import UserError

T = TypeVar("T")


def from_values(kind: type[T], values: Mapping[str, Any], name: str) -> T:
    """Build the dataclass `kind` from JSON values; messages call its keys `name`.KEY.

    Raises UserError naming a key that is unknown or missing, or whose value is not of its type and range.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, name)
    try:
        found: T = parser.instantiate(parser.parse_object({name: dict(values)}))[name]
    except ArgumentError as error:
        raise UserError(" ".join(str(error).split())[:300]) from None
    return found
