"""Why a model has no file of a format: what every exporter's own errors have in common."""

from __future__ import annotations


class ExportError(Exception):
    """A model cannot be written in a format, or the file does not compute what torch computes."""


class ExportPackagesError(ExportError):
    """A package that the export needs is not installed."""
