"""Benchmarks of speed and memory. Run them from the repository root: `python -m benchmarks.train_step`."""
