"""The life of a run: config, folder, checkpoints, resuming, processes, tracking."""
