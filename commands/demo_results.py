"""What the demo page shows below the image: certificates, explanations, other models, groups, files."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
from torch import Tensor

from commands import demo_views as views
from commands.demo_session import Opened, Session
from commands.prediction_visualizer import PredictionVisualizer
from common.errors import UserError
from engine.demo.certificate import certify
from engine.demo.edits import Edits
from engine.demo.encoded import Predicted
from engine.demo.recipe import recipe
from explain import build_method
from explain.sheet import for_display
from report.examples import example_sheet
from report.files import png_layout
from report.overlays import heat_overlay

PER_GROUP = 3
"""Images of a group in the group view."""
MOST_GROUPS = 8
Heats = Mapping[tuple[int, str], Tensor]
"""(number of the model, method) -> map."""


def link(opened: Opened, edits: Edits) -> str:
    """The page's address with this state, from its question mark on. An uploaded image is not in it."""
    image = {} if opened.example is None else {"image": str(opened.example)}
    return "?" + urlencode(image | edits.query())


def python_lines(
    session: Session, opened: Opened, edits: Edits, methods: Sequence[str] = (), target: int | None = None
) -> str:
    """The lines of Python that give the same numbers."""
    other = session.subjects[edits.mask_of] if edits.mask_of else None
    return recipe(session.subjects[0], opened.example, edits, methods, target, other)


def others(opened: Opened) -> str:
    """Each further model's own prediction for the image, as HTML."""
    found = []
    for one in opened.encoded[1:]:
        seen = views.seen_view(one, one.own)
        image = views.pixels_of(one) if seen is None else seen
        caption = "sees every pixel" if seen is None else "what stage 2 sees"
        table = views.score_table(one, one.own, opened.true_class)
        found.append(f"<section><h3>{views.text(one.subject.name)}</h3>{views.figure(image, caption)}{table}</section>")
    return f'<div class="strip">{"".join(found)}</div>' if found else ""


def certificates(opened: Opened, predicted: Predicted) -> str:
    """Overwrite what the first model does not see, and the same pixels for the others. HTML. Raises UserError."""
    sections = []
    for number, one in enumerate(opened.encoded):
        if number not in opened.peers:
            sections.append(
                f"<p>{views.text(one.subject.name)} sees other pixels of the image: size or crop differ.</p>"
            )
            continue
        of = one.own if number else predicted
        before = opened.previous[number] if opened.previous else None
        found = certify(one, of, before, predicted.visible)
        sections.append(views.certificate_view(one, of, found))
    return "".join(sections)


def heats_of(
    opened: Opened, predicted: Predicted, methods: Sequence[str], target: int | None
) -> tuple[dict[tuple[int, str], Tensor], list[str]]:
    """The maps, and a line for each that cannot be made. Those of the first model explain the edited prediction."""
    found, problems = {}, []
    for number, one in enumerate(opened.encoded):
        for method in methods:
            try:
                found[number, method] = one.heat(method, target, None if number else predicted)
            except UserError as error:
                problems.append(f"{method} of {one.subject.name}: {error}")
    return found, problems


def heat_tiles(opened: Opened, heats: Heats, one_scale: bool) -> dict[tuple[int, str], np.ndarray]:
    """The maps over their images. `one_scale`: the same for all models, of each method."""
    shown = {key: for_display(build_method(key[1]), heat).nan_to_num(0, 0, 0) for key, heat in heats.items()}
    limits: dict[str, tuple[float, float]] = {}
    for (_, method), heat in shown.items() if one_scale else ():
        low, high = limits.get(method, (np.inf, -np.inf))
        limits[method] = min(low, float(heat.min())), max(high, float(heat.max()))
    return {
        key: heat_overlay(views.pixels_of(opened.encoded[key[0]]), heat, limits=limits.get(key[1]))
        for key, heat in shown.items()
    }


def explanations(opened: Opened, heats: Heats, problems: Sequence[str], one_scale: bool) -> str:
    """The maps side by side, a row for each model, as HTML."""
    tiles, rows = heat_tiles(opened, heats, one_scale), []
    for number, one in enumerate(opened.encoded):
        figures = [views.figure(tile, key[1].replace("_", " ")) for key, tile in tiles.items() if key[0] == number]
        if figures:
            rows.append(f'<h3>{views.text(one.subject.name)}</h3><div class="strip">{"".join(figures)}</div>')
    scale = "The maps of a method have one scale." if one_scale else "Each map has its own scale."
    lines = "".join(f"<p>{views.text(problem)}</p>" for problem in problems)
    return f"{''.join(rows)}<p>{scale} Dark: lowest value, bright: highest.</p>{lines}"


def files(opened: Opened, predicted: Predicted, heats: Heats) -> str:
    """Links to save the picture (PNG, SVG) and the mask and maps (.npy), which hold their content. HTML."""
    main = opened.main
    tiles = {"image": views.pixels_of(main)}
    for name, view in (
        ("parts", views.parts_view(main, predicted)), ("what stage 2 sees", views.seen_view(main, predicted)),
    ):  # fmt: skip
        if view is not None:
            tiles[name] = view
    for (number, method), tile in heat_tiles(opened, heats, False).items():
        tiles[f"{method}, {opened.encoded[number].subject.name}"] = tile
    probabilities = main.subject.classifier.probabilities(predicted.logits)
    best = int(predicted.logits.argmax())
    title = f"{main.subject.name}: {main.subject.class_names[best]} {float(probabilities[best]):.1%}"
    found = [
        views.download(views.picture(tiles, title, "png"), "demo.png", "image/png"),
        views.download(views.picture(tiles, title, "svg"), "demo.svg", "image/svg+xml"),
    ]
    arrays = {} if predicted.visible is None else {"mask": predicted.visible}
    arrays |= {f"{method}-{number}": heat for (number, method), heat in heats.items()}
    for name, array in arrays.items():
        found.append(views.download(views.array_bytes(array), f"{name}.npy", "application/octet-stream"))
    return f'<p class="files">{" ".join(found)}</p>'


@dataclass(frozen=True)
class GroupSheet:
    """Images by group with what stage 2 sees of them, as one PNG, and where each image is on it."""

    png: bytes
    indices: tuple[int, ...]
    """Of the images in the test split, in the order of `places`."""
    places: tuple[tuple[int, int, int, int], ...]
    """Left, top, right and bottom of each image's column, pixels."""
    none: tuple[str, ...] = ()
    """Names of the groups that have no such image, or are not shown."""

    def at(self, x: float, y: float) -> int | None:
        """Index of the image at a place of the sheet, pixels."""
        for index, (left, top, right, bottom) in zip(self.indices, self.places, strict=True):
            if left <= x < right and top <= y < bottom:
                return index
        return None


def group_sheet(session: Session, groups: Sequence[int], failures: bool) -> GroupSheet:
    """The first images of every group that the first model classifies right, or its worst failures.

    Raises UserError where there is none.
    """
    examples = session.examples
    if examples is None or examples.subject.split is None:
        raise UserError("there are no example images")
    if failures and examples.note:
        raise UserError(examples.note)
    listed = examples.wrong if failures else examples.right
    by_group = {group: listed(group)[:PER_GROUP] for group in sorted(groups)[:MOST_GROUPS]}
    indices = [index for group in by_group.values() for index in group]
    if not indices:
        raise UserError(f"none of these groups has an image that is classified {'wrong' if failures else 'right'}")
    subject, split = examples.subject, examples.subject.split
    visualizer = PredictionVisualizer(split, subject.classifier.mean, subject.classifier.std)
    with subject.alone():
        shown = visualizer.examples(subject.model, indices)
    with tempfile.TemporaryDirectory() as folder:
        png = example_sheet(shown, Path(folder) / "groups.png").read_bytes()
    layout = png_layout(png)
    assert layout is not None
    wide, tall = layout["size"][0], layout["step"] * len(layout["views"])
    places = tuple((c["x"], c["y"], c["x"] + wide, c["y"] + tall) for c in layout["columns"])
    none = tuple(examples.group_names[group] for group in groups if not by_group.get(group))
    return GroupSheet(png, tuple(indices), places, none)
