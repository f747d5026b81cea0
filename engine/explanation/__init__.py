"""Evaluation of explanation methods: maps, map metrics, stored maps."""
