"""The lines of Python that give the numbers of the demo page."""

from collections.abc import Sequence

from engine.demo.edits import OWN, TRUE, Edits
from engine.demo.subject import Subject


def recipe(
    subject: Subject, example: int | None, edits: Edits, methods: Sequence[str] = (), target: int | None = None,
    map_of: Subject | None = None,
) -> str:  # fmt: skip
    """Lines to run from the repository's root. `example`: index in the test split; None: an image of the user's own.

    `map_of`: the other subject that `edits.mask` explains, if it is a map of another one.
    """
    openers = sorted({one.opened.partition("(")[0] for one in (subject, map_of) if one is not None})
    lines = [
        "from pathlib import Path", "", "import torch", "", "from datasets.formats.images import read_image",
        "from engine.demo.edits import Edits", "from engine.demo.encoded import encode",
        f"from engine.demo.subject import {', '.join(openers)}", "", f"subject = {subject.opened}",
    ]  # fmt: skip
    if example is None:
        lines += [
            "pixels = read_image('your_image.png')",
            "image, sample = subject.classifier.preprocess(pixels), None",
        ]
    else:
        lines += [f"pixels = subject.split.raw.read({example}).image", f"sample = subject.split[{example}]"]
        lines.append("image = sample.image")
    lines += ["encoded = encode(subject, image, sample)", "predicted = encoded.own"]
    if edits != Edits():
        lines += _edited(edits, map_of)
    lines.append("print(subject.classifier.probabilities(predicted.logits))")
    if subject.selects:
        lines.append("print(predicted.visible.sum(), 'visible of', predicted.visible.numel())")
    lines += [f"heat = encoded.heat({method!r}, {target}, predicted)" for method in methods]
    return "\n".join(lines) + "\n"


def _edited(edits: Edits, map_of: Subject | None) -> list[str]:
    if edits.mask in (OWN, TRUE):
        return [f"predicted = encoded.edited({_call(edits)})"]
    lines = []
    if map_of is not None:
        lines = [f"other = {map_of.opened}", "other_encoded = encode(other, other.classifier.preprocess(pixels))"]
    of = "encoded" if map_of is None else "other_encoded"
    return [*lines, f"predicted = encoded.edited({_call(edits)}, {of}.heat({edits.mask!r}))"]


def _call(edits: Edits) -> str:
    """`Edits(...)` with what differs from the default."""
    default = Edits()
    given = {name: value for name, value in vars(edits).items() if value != getattr(default, name)}
    words = (
        f"{name}=frozenset({sorted(value)!r})" if isinstance(value, frozenset) else f"{name}={value!r}"
        for name, value in given.items()
    )
    return f"Edits({', '.join(words)})"
