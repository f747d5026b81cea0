"""Read YAML files as plain data, with limits on size, depth and aliases."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError
from common.files import read_file

LARGEST = 1 << 17
"""Maximum characters of a file, which the parser in Python reads in seconds; our files have a few thousand."""
DEEPEST = 50
"""Maximum nesting; our files have four levels. About ten thousand overflow the stack of the parser's C code."""


def read_yaml(path: Path) -> Any:
    """The content of a file. Raises UserError naming it if it cannot be read or `check_yaml` rejects it."""
    try:
        text = read_file(path, 4 * LARGEST).decode("utf-8-sig")
        check_yaml(text)
        return yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"cannot read {path} ({reason[:200]}); correct the file") from None


def check_yaml(text: str) -> None:
    """Raise yaml.YAMLError for a text that is too long or too deeply nested, has aliases (a few make gigabytes), or has
    a key twice in one mapping, of which parsers silently take the last.
    """
    if len(text) > LARGEST:
        raise yaml.YAMLError(f"it has more than {LARGEST} characters")
    events = _checked(yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    while _check_node(events):  # a value of each document
        pass


def _checked(events: Iterable[yaml.Event]) -> Iterator[yaml.Event]:
    depth = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not supported; write the values out")
        if isinstance(event, yaml.ScalarEvent) and "\0" in event.value:  # paths cannot contain it
            raise yaml.YAMLError("it contains a null character")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise yaml.YAMLError(f"lists and mappings are nested more than {DEEPEST} levels deep")
        yield event


def _check_node(events: Iterator[yaml.Event]) -> yaml.Event | None:
    """Read one value with all that it contains, or the end of what contains it; return its first event."""
    for event in events:
        if isinstance(event, yaml.MappingStartEvent):
            keys: set[str] = set()
            while not isinstance(key := _check_node(events), yaml.MappingEndEvent):
                if isinstance(key, yaml.ScalarEvent):
                    if key.value in keys:
                        raise yaml.YAMLError(f"the key {key.value[:80]!r} appears twice")
                    keys.add(key.value)
                _check_node(events)
            return event
        if isinstance(event, yaml.SequenceStartEvent):
            while not isinstance(_check_node(events), yaml.SequenceEndEvent):
                pass
            return event
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionEndEvent):
            return event
    return None
