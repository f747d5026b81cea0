"""Metrics of discovered parts."""
