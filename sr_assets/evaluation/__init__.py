"""Measuring experts and models on benchmarks; the stages are in `assets/evaluation.py`."""
