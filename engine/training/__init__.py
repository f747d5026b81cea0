"""Training: the trainer, the step, objectives, optimiser, schedule, state."""
