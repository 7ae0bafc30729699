"""kill -9 and power cuts at 200 random moments: what is visible is whole, and the rest is made."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from sr_assets.output_folder import LEFTOVERS, building_folder
from sr_assets.storage import open_output
from sr_assets.stores.registry import versions

KINDS = ("patches", "pairs", "cache", "checkpoint", "manifest", "release")
SHARDED = ("patches", "pairs", "cache")
KILLS = 34  # of each kind, or more: 204 in all
ADDRESS = "0123456789abcdef01234567"


class Nursery:
    """A process that has imported everything and forks a writer for each order."""

    def __init__(self, log: Path) -> None:
        script = Path(__file__).with_name("crash_writers.py")
        self._log = log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=errors, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        assert self._answer() == {"ready": True}

    def write(self, kind: str, root: Path, kill_after: float | None = None, **order: str) -> Any:
        """Runs one writer to its end or kills it; its exit code and the seconds it lived."""
        assert self._process.stdin
        line = {"kind": kind, "root": str(root), "kill_after": kill_after, **order}
        self._process.stdin.write(json.dumps(line) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        assert answer["code"] in (0, -signal.SIGKILL), self._log.read_text()
        return answer

    def stop(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, self._log.read_text()
        return json.loads(line)


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    made = Nursery(tmp_path_factory.mktemp("nursery") / "errors.log")
    yield made
    made.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_at_any_moment_loses_nothing_and_leaves_nothing_wrong(
    nursery: Nursery, tmp_path: Path, kind: str
) -> None:
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    seconds = nursery.write(kind, undisturbed)["seconds"]
    expected = contents(kind, undisturbed)
    assert expected
    random_ = random.Random(f"{kind} 8")
    kills, rounds, finished_files = 0, 0, set()

    def fell_between() -> bool:
        return kind not in SHARDED or len(finished_files) > 3

    while kills < KILLS or not (fell_between() or rounds > KILLS):
        rounds += 1
        root = tmp_path / f"round{rounds}"
        root.mkdir()
        for _ in range(3 * KILLS):
            # early moments more often: a resumed writer has less to do than the undisturbed one
            delay = seconds * random_.random() ** 2
            killed = nursery.write(kind, root, delay)["code"] != 0
            kills += killed
            check_whole(kind, root, expected)
            finished_files.add(len(journaled(kind, root)))
            if not killed:
                break
        rest = nursery.write(kind, root)
        assert rest["code"] == 0
        seconds = max(seconds, rest["seconds"])  # the machine may have become busier
        assert contents(kind, root) == expected
        assert not list(root.rglob(".*.partial")), "something half done stayed"
    assert fell_between(), "the kills never fell between two shards"


@pytest.mark.parametrize("kind", KINDS)
def test_a_power_cut_takes_back_nothing_that_is_visible(
    nursery: Nursery, tmp_path: Path, kind: str
) -> None:
    """Data is on the disk before its name is, and the name before anybody relies on it."""
    root, trace = tmp_path / "root", tmp_path / "trace.json"
    root.mkdir()
    nursery.write(kind, root, trace=str(trace))
    events = json.loads(trace.read_text())
    renames = [(at, event) for at, event in enumerate(events) if "rename" in event]
    ours = [(at, e) for at, e in renames if "sources" not in e["to"]]
    assert ours
    for at, event in ours:
        folder = str(Path(event["to"]).parent)
        unsafe = [n for n in event["unsafe"] if n.split("/")[0] not in LEFTOVERS]
        assert not unsafe, f"{event['to']} appeared before these were synced: {unsafe}"
        later = [e["sync"] for e in events[at + 1 :] if "sync" in e]
        assert folder in later, f"nothing brings the name {event['to']} to the disk"
    shown = [e["to"] for _, e in ours]
    for file in root.rglob("*"):
        if file.is_file() and not {"sources", ".lock"} & set(file.relative_to(root).parts):
            assert any(file.is_relative_to(to) for to in shown), f"{file} was written in place"


def contents(kind: str, root: Path) -> dict[str, str]:
    """Every visible file below `root`: name -> digest; what tells the hour apart."""
    found = {}
    for file in sorted(root.rglob("*")):
        name = file.relative_to(root).as_posix()
        hidden = any(part.startswith(".") for part in name.split("/"))
        if file.is_file() and not hidden and not name.startswith("sources/"):
            data = file.read_bytes()
            if kind == "release" and file.name == "manifest.json":
                data = json.dumps({**json.loads(data), "created": ""}).encode()
            found[name] = hashlib.sha256(data).hexdigest()
    return found


def check_whole(kind: str, root: Path, expected: dict[str, str]) -> None:
    """What has its final name is whole, and what the journal calls finished is as it says."""
    if kind == "release":
        found = contents(kind, root)
        for release in versions(UPath(root / "registry"), "net"):
            place = f"registry/net/{release.manifest.version}"
            names = {f"{place}/{name}" for name in release.manifest.files}
            assert names | {f"{place}/manifest.json"} == {n for n in found if n.startswith(place)}
        assert found.items() <= expected.items()
        return
    final = root / kind / "photos" / ADDRESS
    if final.exists():
        assert open_output(UPath(final)) is not None
        assert contents(kind, root) == expected
    for file, digest in journaled(kind, root).items():
        assert hashlib.sha256(file.read_bytes()).hexdigest() == digest, file
    for state in root.rglob("step-*.pt"):
        data = state.read_bytes()
        assert hashlib.sha256(data[:-32]).digest() == data[-32:], f"{state} is half written"


def journaled(kind: str, root: Path) -> dict[Path, str]:
    """Files of the output that is being built, as far as they are finished, with their digests."""
    folder = building_folder(UPath(root / kind / "photos" / ADDRESS))
    journal = folder / ".journal.jsonl"
    found: dict[Path, str] = {}
    for text in journal.read_text().splitlines(keepends=True) if journal.exists() else ():
        if text.endswith("\n"):
            line = json.loads(text)
            found.pop(folder / line["name"], None)
            if not line.get("gone"):
                found[folder / line["name"]] = line["sha256"]
    return found
