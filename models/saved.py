"""Load a saved model of any class: its config.json says which."""

import contextlib
from pathlib import Path
from typing import Any, cast

from common.errors import UserError
from common.files import parse_json, read_file
from models.interface import ImageClassifier
from models.registry import model_class


def saved_class(source: str | Path) -> tuple[Path, type[ImageClassifier]]:
    """The folder and the class of the model in `source`, a run folder (its best) or a folder of `save_pretrained`.

    Raises UserError if there is no such model.
    """
    source = Path(source).expanduser()
    folder = source / "best" if (source / "best").is_dir() else source
    try:
        config = parse_json(read_file(folder / "config.json"))["model_config"]
        name, selector = str(config["name"]), str(config.get("selector", "parts"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(
            f"{source} is neither a run folder nor one of save_pretrained: no readable config.json"
        ) from None
    kind = model_class(name, selector)
    if not (folder / "model.safetensors").is_file():
        raise UserError(f"{folder} has no model.safetensors yet")
    return folder, kind


def load_saved(source: str | Path, **options: Any) -> ImageClassifier:
    """The model in `source`, a run folder (its best) or a folder of `save_pretrained`, in eval mode.

    `options`: of `from_pretrained`. Raises UserError if there is no such model or its weights do not fit.
    """
    folder, kind = saved_class(source)
    with contextlib.redirect_stdout(None):  # huggingface_hub prints what it loads
        return cast(ImageClassifier, kind.from_pretrained(folder, **options))
