"""Fusion networks over the outputs of frozen experts."""
