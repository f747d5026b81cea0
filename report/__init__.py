"""What people look at: overlays, contact sheets, curves, tables, and one self-contained report.html.

Everything here takes plain arrays, tensors and dicts; nothing knows of models or runs. An image is a
[H, W, 3] uint8 RGB array throughout.
"""
