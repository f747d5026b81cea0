"""Read YAML files as plain data, with limits on size, depth and aliases."""

from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError

LARGEST = 1 << 20
"""Maximum characters of a file."""
DEEPEST = 50
"""Maximum nesting; our files have four levels. About ten thousand overflow the stack of the parser's C code."""


def read_yaml(path: Path) -> Any:
    """The content of a file. Raises UserError naming it if it cannot be read or `check_yaml` rejects it."""
    try:
        text = path.read_text(encoding="utf-8")
        check_yaml(text)
        return yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"cannot read {path} ({reason[:200]}); correct the file") from None


def check_yaml(text: str) -> None:
    """Raise yaml.YAMLError for a text that is too long, too deeply nested, or has aliases (a few make gigabytes)."""
    if len(text) > LARGEST:
        raise yaml.YAMLError(f"it has more than {LARGEST} characters")
    depth = 0
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not supported; write the values out")
        if isinstance(event, yaml.ScalarEvent) and "\0" in event.value:  # paths cannot contain it
            raise yaml.YAMLError("it contains a null character")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise yaml.YAMLError(f"lists and mappings are nested more than {DEEPEST} levels deep")
