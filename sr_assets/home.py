"""Dagster's home folder: which one is used, and its settings when it is new.

The settings themselves are `dagster.yaml` beside this file; a home that has its own keeps it.
"""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

import dagster as dg

from sr_assets.lineage.stage import StageError

_SETTINGS = "dagster.yaml"


def dagster_home() -> Path:
    """`DAGSTER_HOME`, or `dagster_home/` below the current folder, made ready for use.

    Settings that are there already are never touched, whatever storage they name. The variable is
    set for this process and its children, since Dagster reads it everywhere.

    Raises:
        OSError: the folder can neither be used as it is nor be made.
    """
    home = Path(os.environ.get("DAGSTER_HOME") or "dagster_home").absolute()
    home.mkdir(parents=True, exist_ok=True)
    settings = home / _SETTINGS
    if not settings.exists():
        # Whole or not there: another process may read it at this moment.
        new = home / f".{_SETTINGS}.{os.getpid()}"
        new.write_bytes((files("sr_assets") / _SETTINGS).read_bytes())
        new.replace(settings)
    os.environ["DAGSTER_HOME"] = str(home)
    return home


def open_instance() -> dg.DagsterInstance:
    """The Dagster instance of `dagster_home()`; use it in a `with`.

    Raises:
        StageError: its settings cannot be used: a variable that they name is not set, a package is
            missing, or the database does not answer.
    """
    settings = dagster_home() / _SETTINGS
    try:
        return dg.DagsterInstance.get()
    except Exception as error:  # Dagster and its storages raise what they like
        raise StageError(f"{settings} cannot be used: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """One line of the innermost error: the one about a variable where there is one."""
    while error.__cause__ is not None:
        error = error.__cause__
    settings = error.errors if isinstance(error, dg.DagsterInvalidConfigError) else []
    said = "\n".join(e.message for e in settings) or str(error)
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    about_variable = [line for line in lines if "environment variable" in line]
    return (about_variable or lines or [type(error).__name__])[0]
