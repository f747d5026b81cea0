"""YAML files that are only data, and no more of it than they look like."""

from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError

LARGEST = 1 << 20
"""Characters of a file."""
DEEPEST = 50
"""Lists and mappings inside each other; ours have four. Some ten thousand overflow the stack of the parser's C code."""


def read_yaml(path: Path) -> Any:
    """What the file holds. Raises UserError naming it where it cannot be read or `check_yaml` refuses it."""
    try:
        text = path.read_text(encoding="utf-8")
        check_yaml(text)
        return yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"cannot read {path} ({reason[:200]}); correct the file") from None


def check_yaml(text: str) -> None:
    """Raise yaml.YAMLError for a text too long or too deep, and for aliases (*name), few of which make gigabytes."""
    if len(text) > LARGEST:
        raise yaml.YAMLError(f"it has over {LARGEST} characters")
    depth = 0
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read; write the values out")
        if isinstance(event, yaml.ScalarEvent) and "\0" in event.value:  # no path can hold it
            raise yaml.YAMLError("a zero character stands in it")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise yaml.YAMLError(f"lists and mappings lie over {DEEPEST} deep in each other")
