"""Procedural birds. `python -m datasets.synthetic OUT` writes them in the layout of CUB and Waterbirds."""
