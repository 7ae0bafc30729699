"""Trackers: wandb in its offline mode where it is installed, else what is said without it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from sr_models.training.trackers import TrackerError, require_tracker, tracked


@pytest.mark.parametrize("tracker", ["wandb", "trackio"])
def test_a_missing_package_is_told_with_its_cure(
    tracker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TrackerError, match=f"{tracker} is not installed: pip install {tracker}"):
        require_tracker(tracker)  # type: ignore[arg-type]
    with (
        pytest.raises(TrackerError),
        tracked(tracker, project="p", run="r", config={}),  # type: ignore[arg-type]
    ):
        pass


def test_wandb_gets_every_point_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    options = {"project": "p", "run": "fusion-abc", "config": {"steps": 3}}
    with tracked("wandb", **options) as report:  # type: ignore[arg-type]
        for step in (1, 2, 3):
            report(step, {"loss/total": 1 / step})
        run = wandb.run
        assert run.id == "fusion-abc" and run.config["steps"] == 3
        assert run.step == 3
    assert wandb.run is None, "the run is finished"
    assert list(tmp_path.rglob("*.wandb"))


def test_trackio_gets_every_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    trackio = pytest.importorskip("trackio")
    with tracked("trackio", project="p", run="r", config={"a": 1}) as report:
        report(1, {"loss/total": 0.5})
    assert trackio.Api().runs("p")
