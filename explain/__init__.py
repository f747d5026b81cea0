"""Explanation methods: heat maps of what a classifier looks at.

from explain import explain
maps = explain(model, images, "agcam")  # [B, h, w]
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from explain.api import METHODS, Explainer, build_method, explain, run_method

__all__ = ["METHODS", "Explainer", "build_method", "explain", "run_method"]


def __getattr__(name: str) -> Any:
    """Import torch, timm and the methods when they are first used, so that `python -m explain --help` is fast."""
    if name in __all__:
        return getattr(import_module("explain.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
