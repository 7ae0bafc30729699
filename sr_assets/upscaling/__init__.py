"""Enlarging picture files with a finished model: `srd upscale` and the calls behind it."""
