"""Fixtures that every test may use."""

from pathlib import Path

import pytest
from hypothesis import settings

# No deadline: tests assert behaviour, never elapsed time, and machines are shared.
settings.register_profile("project", deadline=None)
settings.load_profile("project")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The development data folder beside the checkout (photos, benchmarks, weights)."""
    if not SHARED.is_dir():
        pytest.skip("the development data folder is not beside this checkout")
    return SHARED
