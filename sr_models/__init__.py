"""Networks and numerics on torch tensors; knows nothing of Dagster, recipes or folder layouts."""

import os
import sys

if sys.platform == "darwin":
    # torch reads it while it is imported, so this stands where nobody can have imported it before:
    # see sr_models/training/devices.py.
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
