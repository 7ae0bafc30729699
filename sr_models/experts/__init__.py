"""Frozen experts: loading, padding, feature taps, and EDSR."""
