"""Metrics declare how their values are shown when they are imported."""

import metrics  # noqa: F401
