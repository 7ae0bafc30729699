"""Networks and numerics on torch tensors; knows nothing of Dagster, recipes or folder layouts."""

import importlib
import os
import sys

if sys.platform == "darwin":
    # torch reads it while it is imported, so this stands where nobody can have imported it before:
    # see sr_models/training/devices.py.
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")


def register() -> None:
    """Adds our architectures and EDSR to spandrel's registry; again, it does nothing.

    Afterwards `spandrel.ModelLoader().load_from_file(path)` opens our files and the released ones.
    """
    # By name, at the call: importing this package loads no torch, and whoever imports it does not
    # depend on every network for that.
    importlib.import_module("sr_models.plugin").register()
