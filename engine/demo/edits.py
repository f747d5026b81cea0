"""What a user changes about the mask of one image, and its form in a link."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from common.errors import UserError

OWN, TRUE = "own", "true"
"""Sources of a mask: stage 1, the data set. Any other is the name of an explanation method."""
Patch = tuple[int, int]
"""Row and column on the patch grid."""


@dataclass(frozen=True)
class Edits:
    """Changes to what stage 2 sees of one image; by default none.

    Parts, thresholds and margin change stage 1's mask. `mask` puts another one in its place, with as many patches
    (pixels, with `model.mask_resolution=pixel`). `shown` and `hidden` are painted over the result.
    """

    remove_parts: tuple[int, ...] = ()
    thresholds: tuple[tuple[int, float], ...] = ()
    """(part, threshold), see `Intervention.thresholds`."""
    margin: float = 0.0
    """Added to `model.parts.margin`: the logit by which a part must exceed the background."""
    mask: str = OWN
    mask_of: int = 0
    """Of a map: the model that it explains, by its number on the page."""
    shown: frozenset[Patch] = frozenset()
    hidden: frozenset[Patch] = frozenset()

    @property
    def changes_stage_1(self) -> bool:
        """Whether stage 1's part head has to run again."""
        return bool(self.remove_parts or self.thresholds or self.margin)

    def painted(self, patch: Patch, visible: bool) -> "Edits":
        """The same with this patch shown or hidden."""
        shown, hidden = self.shown - {patch}, self.hidden - {patch}
        return replace(self, shown=shown | {patch}, hidden=hidden) if visible else replace(
            self, shown=shown, hidden=hidden | {patch}
        )  # fmt: skip

    def query(self) -> dict[str, str]:
        """The changes as parameters of a link; those that are not given stay out."""
        values = {
            "remove": ",".join(map(str, self.remove_parts)),
            "thresholds": ",".join(f"{part}:{value!r}" for part, value in self.thresholds),
            "margin": repr(self.margin) if self.margin else "",
            "mask": "" if self.mask == OWN else self.mask,
            "mask_of": str(self.mask_of) if self.mask_of else "",
            "show": _patches(self.shown),
            "hide": _patches(self.hidden),
        }
        return {key: value for key, value in values.items() if value}

    @classmethod
    def from_query(cls, query: Mapping[str, str]) -> "Edits":
        """Read what `query` wrote; other parameters are ignored. Raises UserError for a value that is none of its."""
        try:
            pairs = [text.split(":") for text in _items(query, "thresholds")]
            return cls(
                tuple(sorted({int(text) for text in _items(query, "remove")})),
                tuple(sorted({int(part): float(value) for part, value in pairs}.items())),
                float(query.get("margin", 0.0)),
                query.get("mask", OWN),
                int(query.get("mask_of", 0)),
                _read_patches(query, "show"),
                _read_patches(query, "hide") - _read_patches(query, "show"),
            )
        except ValueError:
            raise UserError("the link is damaged: its numbers cannot be read; make a new one") from None

    def check(self, parts: int, grid: tuple[int, int]) -> None:
        """Raise UserError for a part, number or patch that the model does not have."""
        named = {*self.remove_parts, *(part for part, _ in self.thresholds)}
        if wrong := sorted(part for part in named if not 0 <= part < parts):
            have = f"parts 0 to {parts - 1}" if parts else "no parts"
            raise UserError(f"no part {wrong[0]}: the model has {have}")
        if self.margin != self.margin or any(value != value for _, value in self.thresholds):
            raise UserError("a threshold or the margin is not a number")
        if any(not (0 <= row < grid[0] and 0 <= column < grid[1]) for row, column in self.shown | self.hidden):
            raise UserError(f"a painted patch lies outside the grid of {grid[0]} x {grid[1]} patches")


def _items(query: Mapping[str, str], key: str) -> list[str]:
    return [text for text in query.get(key, "").split(",") if text]


def _patches(patches: Iterable[Patch]) -> str:
    return ",".join(f"{row}.{column}" for row, column in sorted(patches))


def _read_patches(query: Mapping[str, str], key: str) -> frozenset[Patch]:
    pairs = (text.split(".") for text in _items(query, key))
    return frozenset((int(row), int(column)) for row, column in pairs)
