"""Compose data sets in the layout of Waterbirds from photographs: objects with masks on backgrounds of two kinds."""
