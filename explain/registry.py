"""Explanation methods by name."""

from common.registry import Registry
from explain.types import Explainer

METHODS: Registry[type[Explainer]] = Registry("explanation method (--method)")
