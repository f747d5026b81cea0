"""Evaluation of a model on a split: the loop, predictions, records, interventions, thresholds."""
