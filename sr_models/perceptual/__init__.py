"""Refinement of finished pictures by a diffusion model in one step, as TSD-SR does it."""
