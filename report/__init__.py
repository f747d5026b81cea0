"""Overlays, contact sheets, curves, tables, and self-contained HTML reports.

Everything here takes plain arrays, tensors and dicts, and does not depend on models or runs. Images are [H, W, 3] uint8
RGB arrays.
"""
