"""Rows of benchmarks.part_use: config keys on top of configs/waterstamps.yaml. A group of rows changes one thing."""

from typing import Any

SETTINGS: dict[str, dict[str, Any]] = {"current": {}}
