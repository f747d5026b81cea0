"""Code that every package may import: the user error, registries, processes, seeds, safe readers."""
