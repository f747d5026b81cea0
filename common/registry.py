"""A registry maps names to factories."""

import difflib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from common.errors import UserError

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to factories. Registering a name twice raises ValueError; looking up an unknown one raises UserError."""

    def __init__(self, kind: str) -> None:
        """`kind` describes an entry and its flag in error messages: "data set (--data.name)"."""
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that registers a factory under `name`."""

        def add(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            near = difflib.get_close_matches(name, self._entries, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            known = ", ".join(sorted(self._entries))
            raise UserError(f"unknown {self.kind} {name!r}{hint}; known: {known}; of your own: --plugin FILE.py")
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))
