"""Metrics of heat maps."""
