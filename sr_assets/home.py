"""Dagster's home folder: which one is used, and its settings when it is new.

The settings themselves are `dagster.yaml` beside this file.
"""

from __future__ import annotations

import os
import shutil
from importlib.resources import files
from pathlib import Path

import dagster as dg


def dagster_home() -> Path:
    """`DAGSTER_HOME`, or `dagster_home/` below the current folder, made ready for use.

    The variable is set for this process and its children, since Dagster reads it everywhere.
    """
    home = Path(os.environ.get("DAGSTER_HOME") or "dagster_home").absolute()
    home.mkdir(parents=True, exist_ok=True)
    settings = home / "dagster.yaml"
    if not settings.exists():
        shutil.copyfile(Path(str(files("sr_assets") / "dagster.yaml")), settings)
    os.environ["DAGSTER_HOME"] = str(home)
    return home


def open_instance() -> dg.DagsterInstance:
    """The Dagster instance of `dagster_home()`; use it in a `with`."""
    dagster_home()
    return dg.DagsterInstance.get()
