"""Schedules, sensors and asset checks."""
