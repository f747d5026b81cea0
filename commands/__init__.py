"""Commands: what evaluate.py runs, and the scripts started by `python -m commands.NAME`."""
