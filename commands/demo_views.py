"""What the demo page shows of its results: images, tables and files, as HTML or data links. Nothing is written to disk.

All text is escaped here: names of classes, groups, runs and files come from outside.
"""

import base64
import html
import io
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from common.errors import printable
from engine.demo.certificate import Overwritten, largest_change
from engine.demo.encoded import Encoded, Predicted
from metrics.maps.certificate import FILLS
from report.overlays import denormalise, mask_view, part_overlay, resize_shorter
from report.style import part_colour

SIDE = 392
"""Shorter side of a shown image, pixels; a multiple of the usual patch grids 14 and 28."""
MOST_CLASSES = 10
"""Classes in the table of scores: those with the largest probabilities, before or after the edits."""
FILLED_WITH = dict(zip(FILLS, ("noise", "zeros", "another image"), strict=True))
_BRACES = str.maketrans({"{": "&#123;", "}": "&#125;", "$": "&#36;"})


def text(value: object) -> str:
    """Any text for HTML. Braces too are escaped: Gradio takes some for a template."""
    return html.escape(printable(str(value))).translate(_BRACES)


def data_url(content: bytes, kind: str) -> str:
    """A link that holds the content itself."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def png_url(image: np.ndarray) -> str:
    """[H, W, 3] uint8 as a PNG in a link; fast rather than small."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return data_url(buffer.getvalue(), "image/png")


def figure(image: np.ndarray, caption: str) -> str:
    """An image with its caption, which also is its text for screen readers."""
    return (
        f'<figure><img src="{png_url(image)}" alt="{text(caption)}"><figcaption>{text(caption)}</figcaption></figure>'
    )


def pixels_of(encoded: Encoded, image: Tensor | None = None) -> np.ndarray:
    """The network's input, or `image` [3, H, W] normalised as it is, [H, W, 3] uint8 with the shorter side at SIDE."""
    found = denormalise(encoded.image if image is None else image, *_scale(encoded))
    return resize_shorter(found, SIDE)


def _scale(encoded: Encoded) -> tuple[Sequence[float], Sequence[float]]:
    return encoded.subject.classifier.mean, encoded.subject.classifier.std


def parts_view(encoded: Encoded, predicted: Predicted) -> np.ndarray | None:
    """The image with the patches in the colour of their part; None for a model without parts."""
    selection = predicted.selection
    if selection is None or selection.maps is None:
        return None
    return part_overlay(pixels_of(encoded), selection.maps[0], selection.visible[0])


def seen_view(encoded: Encoded, predicted: Predicted) -> np.ndarray | None:
    """What stage 2 sees; None for a model that sees every pixel."""
    if predicted.visible is None or not encoded.subject.selects:
        return None
    return mask_view(pixels_of(encoded), predicted.visible)


def legend(labels: Sequence[str]) -> str:
    """The colour of each part."""
    entries = (
        f'<span class="part"><i style="background:{part_colour(part)}"></i>{text(label)}</span>'
        for part, label in enumerate(labels)
    )
    return f'<p class="legend">{"".join(entries)}</p>' if labels else ""


def score_table(encoded: Encoded, predicted: Predicted, truth: str | None = None) -> str:
    """Probabilities by class: now, without edits, the difference, and stage 1's own."""
    names, probabilities = encoded.subject.class_names, encoded.subject.classifier.probabilities
    now, own = probabilities(predicted.logits).cpu(), probabilities(encoded.own.logits).cpu()
    stage_1 = None if predicted.stage_1_logits is None else probabilities(predicted.stage_1_logits).cpu()
    edited = predicted is not encoded.own
    order = torch.maximum(now, own).argsort(descending=True, stable=True)[:MOST_CLASSES].tolist()
    columns = ["class", "stage 2" if stage_1 is not None else "probability"]
    columns += ["without edits", "difference"] if edited else []
    columns += ["stage 1"] if stage_1 is not None else []
    head = "".join(f'<th scope="col">{column}</th>' for column in columns)
    rows = []
    for index in order:
        shown, before = float(now[index]), float(own[index])
        mark = " (true class)" if names[index] == truth else ""
        bar = f'<div class="bar" style="width:{100 * shown:.1f}%"></div>'
        cells = [f"<td>{bar}<span>{shown:.1%}</span></td>"]
        cells += [f"<td>{before:.1%}</td>", f"<td>{100 * (shown - before):+.1f} points</td>"] if edited else []
        cells += [f"<td>{float(stage_1[index]):.1%}</td>"] if stage_1 is not None else []
        rows.append(f'<tr><th scope="row">{text(names[index] + mark)}</th>{"".join(cells)}</tr>')
    table = f'<table class="scores"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return f'<div class="wide">{table}</div>'


def certificate_text(encoded: Encoded, predicted: Predicted, found: list[Overwritten]) -> str:
    """Whether the prediction depends on what was overwritten, in one sentence."""
    change, name = largest_change(found), encoded.subject.name
    if encoded.subject.selects and predicted.visible is not None and not predicted.visible.any():
        return f"{name}: nothing is visible, so any prediction would stay as it is: this proves nothing."
    if change == 0:
        return f"{name}: holds. The largest change of a logit is exactly 0."
    return f"{name}: does not hold. Logits change by up to {change:.3g}."


def certificate_view(encoded: Encoded, predicted: Predicted, found: list[Overwritten]) -> str:
    """The overwritten images and how the prediction moved with each."""
    names, probabilities = encoded.subject.class_names, encoded.subject.classifier.probabilities
    best = int(predicted.logits.argmax())
    before = float(probabilities(predicted.logits)[best])
    figures = []
    for one in found:
        after, new = probabilities(one.logits), int(one.logits.argmax())
        moved = f"{names[best]} {before:.1%} before, {float(after[best]):.1%} after"
        flipped = f"; predicted now: {names[new]}" if one.flipped else ""
        caption = f"{FILLED_WITH[one.fill]}: {moved}; largest change of a logit {one.logit_change:.3g}{flipped}"
        figures.append(figure(pixels_of(encoded, one.image), caption))
    holds = largest_change(found) == 0
    return (
        f'<section class="{"holds" if holds else "fails"}"><h3>{text(certificate_text(encoded, predicted, found))}</h3>'
        f'<div class="strip">{"".join(figures)}</div></section>'
    )


def download(content: bytes, name: str, kind: str) -> str:
    """A link that saves the content under a name."""
    return f'<a download="{text(name)}" href="{data_url(content, kind)}">{text(name)}</a>'


def array_bytes(array: Tensor) -> bytes:
    """The tensor as a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array.detach().cpu().numpy())
    return buffer.getvalue()


def picture(tiles: Mapping[str, np.ndarray], title: str, kind: str) -> bytes:
    """The tiles side by side, each with its name, as a file of `kind` png or svg."""
    drawn = Figure(figsize=(2.6 * len(tiles), 3.2), layout="constrained")
    drawn.suptitle(printable(title).replace("$", r"\$"), fontsize=9)
    for axes, (name, tile) in zip(np.atleast_1d(drawn.subplots(1, len(tiles))), tiles.items(), strict=True):
        axes.imshow(tile)
        axes.set_title(printable(name).replace("$", r"\$"), fontsize=8)
        axes.axis("off")
    buffer = io.BytesIO()
    drawn.savefig(buffer, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()
