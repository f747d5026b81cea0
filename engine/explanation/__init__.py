"""Evaluation of explanation methods: their maps, the metrics of maps, stored maps."""
