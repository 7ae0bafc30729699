"""Fixtures that every test may use."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import HubServer
from hypothesis import settings
from s3_server import s3, s3_server

__all__ = ["s3", "s3_server"]  # fixtures

# No deadline: tests assert behaviour, never elapsed time, and machines are shared. And the same
# examples every time: what passes once passes again.
settings.register_profile("project", deadline=None, derandomize=True)
settings.load_profile("project")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_runtest_setup() -> None:
    """What a test draws without a seed of its own is the same, whatever ran before it."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The development data folder beside the checkout (photos, benchmarks, weights)."""
    if not SHARED.is_dir():
        pytest.skip("the development data folder is not beside this checkout")
    return SHARED


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A hub on localhost, an empty cache, and an environment that names both and nothing else."""
    server = HubServer()
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    yield server
    server.stop()
