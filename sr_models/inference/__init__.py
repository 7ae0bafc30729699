"""Whole-image and tiled inference."""
