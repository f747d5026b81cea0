"""Entry points of torch.hub: trained models in any program, without this repository as the working directory.

    model = torch.hub.load("/path/to/this/repository", "two_stage", run="/path/to/runs/waterbirds-k8", source="local")

`run`: a run folder (its best model), a folder of `save_pretrained`, or the name of a model on the Hugging Face Hub. The
caller may have packages of its own named `models` or `common`: ours are imported beside them, and not left behind.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

dependencies = ["huggingface_hub", "jsonargparse", "numpy", "safetensors", "timm", "torch"]
_ROOT = Path(__file__).resolve().parent
_OURS = ("common", "models")
"""The packages that models are made of."""
_KEPT = f"faithful_vit of {_ROOT}"
"""Key of `sys.modules` under which our modules are kept between calls; no import statement can name it."""


def two_stage(run: str, **options: Any) -> Any:
    """Both stages (also with another selector of patches than parts), in eval mode; see `_load`."""
    return _load("two_stage", run, options)


def pdiscoformer(run: str, **options: Any) -> Any:
    """A part discovery model of one stage, in eval mode; see `_load`."""
    return _load("pdiscoformer", run, options)


def vit(run: str, **options: Any) -> Any:
    """A plain ViT, in eval mode; see `_load`."""
    return _load("vit", run, options)


def cnn(run: str, **options: Any) -> Any:
    """A CNN of timm, in eval mode; see `_load`."""
    return _load("cnn", run, options)


def decoupled(run: str, **options: Any) -> Any:
    """A stage 2 that takes the mask with the images, in eval mode; see `_load`."""
    return _load("decoupled", run, options)


def late_masking(run: str, **options: Any) -> Any:
    """A ViT whose last tokens are masked by a given mask, in eval mode; see `_load`."""
    return _load("late_masking", run, options)


def _load(name: str, run: str, options: dict[str, Any]) -> Any:
    """The model of `run`, which must be of model.name=`name`. `options`: of `from_pretrained`, such as `revision`.

    Raises ValueError (one line) if there is no such model there or its weights do not fit.
    """
    with _own_packages():
        from common.errors import UserError
        from models import MODELS, SelectedViT
        from models.saved import load_saved

        if not Path(run).expanduser().exists():
            return MODELS[name].from_pretrained(run, **options)
        model = load_saved(run, **options)
        if not isinstance(model, (MODELS[name], SelectedViT) if name == "two_stage" else MODELS[name]):
            raise UserError(f"{run} holds a {type(model).__name__}, not a model of model.name={name}")
        return model


@contextmanager
def _own_packages() -> Iterator[None]:
    """Import `_OURS` from this repository, whatever the caller has imported under these names, and hide them again.

    A caller who imported them from here keeps them.
    """
    theirs = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in _OURS}
    if all(_is_ours(module) for module in theirs.values()) and theirs:
        yield
        return
    kept: Any = sys.modules.setdefault(_KEPT, ModuleType(_KEPT))
    for name in theirs:
        del sys.modules[name]
    sys.modules.update(vars(kept).get("modules", {}))
    sys.path.insert(0, str(_ROOT))
    try:
        yield
    finally:
        sys.path.remove(str(_ROOT))
        kept.modules = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in _OURS}
        for name in kept.modules:
            del sys.modules[name]
        sys.modules.update(theirs)


def _is_ours(module: ModuleType) -> bool:
    return Path(getattr(module, "__file__", None) or "").resolve().is_relative_to(_ROOT)
