"""The demo page without its widgets: from what a user chose to what the page shows.

Every call gets everything it depends on, so users at the same time do not mix.
"""

import contextlib
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from common.errors import UserError
from common.files import check_regular
from datasets.formats.images import UnreadableImageError, read_image
from engine.demo.edits import OWN, TRUE, Edits
from engine.demo.encoded import Encoded, Predicted, encode
from engine.demo.examples import Examples, examples_of
from engine.demo.subject import Subject
from explain import METHODS, build_method
from explain.explained_model import explained_model
from explain.types import check_method

CLICKS = ("remove the part, or put it back", "keep this part alone", "show the patch", "hide the patch")
LISTED = 24
"""Examples of a group that can be chosen."""


@dataclass(frozen=True)
class Opened:
    """An image as every model on the page sees it; one user's."""

    encoded: tuple[Encoded, ...]
    """The first one is edited."""
    example: int | None = None
    """Its index in the test split; None for an image of the user's own."""
    previous: tuple[Tensor, ...] = ()
    """[3, H, W] for each model: the image before it in the split, with which the certificate overwrites."""

    @property
    def main(self) -> Encoded:
        """The image in the model that is edited."""
        return self.encoded[0]

    @property
    def true_class(self) -> str | None:
        """The name of its class, where it is known."""
        sample, split = self.main.sample, self.main.subject.split
        if sample is None or split is None or sample.present is not None:
            return None
        return split.info.class_names[sample.label]

    @property
    def peers(self) -> list[int]:
        """The models, by number, whose maps fit the first one's mask: they see the same pixels."""
        return [i for i, one in enumerate(self.encoded) if i == 0 or self.main.sees_same_pixels(one)]


@dataclass
class Session:
    """The models of the page, and everything it does with them. Holds nothing of a user."""

    subjects: Sequence[Subject]
    largest_upload: int
    """Bytes."""
    examples: Examples | None = None
    _methods: dict[int, list[str]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        if self.examples is None and self.subjects[0].split is not None:
            self.examples = examples_of(self.subjects[0])

    def open_upload(self, file: Path) -> Opened:
        """Read an uploaded image and delete its file. Raises UnreadableImageError, which does not tell its path."""
        try:
            check_regular(file, self.largest_upload)
            pixels = read_image(file)
        except OSError as error:
            raise UnreadableImageError("uploaded", error.strerror or str(error)) from None
        except UnreadableImageError as error:
            raise UnreadableImageError("uploaded", error.reason) from None
        finally:
            with contextlib.suppress(OSError):
                os.unlink(file)
        return Opened(tuple(encode(one, one.classifier.preprocess(pixels)) for one in self.subjects))

    def open_example(self, index: int) -> Opened:
        """An image of the test split. Raises UserError."""
        if self.examples is None:
            raise UserError("there are no example images: upload one")
        try:
            sample = self.examples.sample(index)
        except IndexError:
            raise UserError(f"the test split has no image {index}") from None
        assert self.examples.subject.split is not None
        raw = self.examples.subject.split.raw
        pixels, before = raw.read(index).image, raw.read(index - 1).image if index else None
        encoded = tuple(
            encode(one, one.classifier.preprocess(pixels) if number else sample.image, None if number else sample)
            for number, one in enumerate(self.subjects)
        )
        previous = () if before is None else tuple(one.classifier.preprocess(before) for one in self.subjects)
        return Opened(encoded, index, previous)

    def choices(self, group: int) -> list[tuple[str, int]]:
        """Examples of a group as (text, index): the worst failures first, then images that are right."""
        if self.examples is None:
            return []
        known = self.examples.predicted is not None
        wrong = self.examples.wrong(group)[:LISTED] if known else []
        right = self.examples.right(group)[: LISTED - len(wrong)]
        listed = [(f"wrong: image {index}", index) for index in wrong]
        return listed + [(f"{'right: ' if known else ''}image {index}", index) for index in right]

    def methods(self, number: int, one: Encoded) -> list[str]:
        """The methods that can explain a model."""
        with self._lock:
            if number not in self._methods:
                with one.subject.alone():
                    explained = explained_model(one.subject.model, one.image[None], one.subject.stage)
                    able = []
                    for name in METHODS:
                        with contextlib.suppress(UserError):
                            check_method(build_method(name), explained)
                            able.append(name)
                self._methods[number] = able
            return self._methods[number]

    def masks(self, opened: Opened) -> list[tuple[str, str]]:
        """The masks that can stand in for the model's own, as (text, value); empty for a model without one."""
        if not opened.main.subject.selects:
            return []
        found = [("the model's own", OWN)] + ([("the true mask", TRUE)] if opened.main.truth is not None else [])
        for number in opened.peers:
            of = f" of {opened.encoded[number].subject.name}" if len(self.subjects) > 1 else ""
            found += [
                (f"{name.replace('_', ' ')}{of}", mask_value(name, number))
                for name in self.methods(number, opened.encoded[number])
            ]
        return found

    def predicted(self, opened: Opened, edits: Edits) -> Predicted:
        """The first model's prediction after the edits. Raises UserError."""
        heat = None
        if edits.mask not in (OWN, TRUE):
            if edits.mask not in METHODS or edits.mask_of not in opened.peers:
                raise UserError(f"there is no mask {edits.mask} of model {edits.mask_of} here; choose another")
            heat = opened.encoded[edits.mask_of].heat(edits.mask)
        return opened.main.edited(edits, heat)

    def clicked(self, opened: Opened, edits: Edits, click: str, place: tuple[float, float]) -> tuple[Edits, str]:
        """The edits after a click at `place` (x, y; fractions of the image), and a line if it changed nothing."""
        selection = opened.main.own.selection
        if selection is None or not opened.main.subject.selects:
            return edits, opened.main.subject.limits
        h, w = selection.mask.shape[1:]
        patch = min(int(place[1] * h), h - 1), min(int(place[0] * w), w - 1)
        if click in CLICKS[2:]:
            return edits.painted(patch, click == CLICKS[2]), ""
        if selection.maps is None:
            return edits, "this model has no parts: show or hide patches"
        part, parts = int(selection.maps[0, :, patch[0], patch[1]].argmax()), opened.main.subject.parts
        if part == parts:
            return edits, "this patch is background: click a part, or show and hide patches"
        removed = set(edits.remove_parts)
        if click == CLICKS[0]:
            removed ^= {part}
        else:
            others = set(range(parts)) - {part}
            removed = set() if removed == others else others
        return replace(edits, remove_parts=tuple(sorted(removed))), ""

    def notes(self, opened: Opened, edits: Edits, predicted: Predicted) -> list[str]:
        """What a reader has to know about the prediction."""
        found = [opened.main.subject.limits] if opened.main.subject.limits else []
        selection = predicted.selection
        if selection is not None and opened.main.subject.selects:
            count, total = int(selection.visible.sum()), selection.visible.numel()
            what = "pixels" if selection.pixels is not None else "patches"
            found.append(f"Stage 2 sees {count:,} of {total:,} {what} ({count / total:.1%}).")
            replaced = edits.mask != OWN or edits.shown or edits.hidden
            if selection.empty is not None and bool(selection.empty[0]) and not replaced:
                left = "the best patch of the remaining parts" if count else "no patch"
                found.append(f"No patch is left to stage 2, which then sees {left}.")
        return found


def mask_value(method: str, number: int) -> str:
    """A map of a model, by number, as the value of a menu."""
    return f"{method} {number}"


def read_mask_value(value: str) -> tuple[str, int]:
    """`Edits.mask` and `mask_of` of a menu's value. Raises UserError."""
    method, _, number = value.partition(" ")
    if number and not number.isdecimal():
        raise UserError(f"there is no mask {value!r}")
    return method, int(number or 0)
