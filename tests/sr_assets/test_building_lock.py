"""Two processes on one store, locks of the dead, and clocks that jump."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from upath import UPath

import sr_assets.stores.registry as registry
from sr_assets.building_lock import LOCK
from sr_assets.disk import StorageError
from sr_assets.output_folder import OutputFolder
from sr_assets.storage import open_output

BUILDER = """
import sys
from upath import UPath
from sr_assets.output_folder import OutputFolder
folder = OutputFolder(UPath(sys.argv[1]))
folder.write_bytes("a", b"theirs")
print("building", flush=True)
if sys.stdin.readline() == "commit\\n":
    folder.commit({"metadata": {}})
    print("done", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def builder(final: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has begun to build the output at `final`."""
    process = subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(final)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout and process.stdin
    assert process.stdout.readline() == "building\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_second_process_is_refused_by_name_until_the_first_has_died(tmp_path: Path) -> None:
    final = tmp_path / "gold" / "0123"
    with builder(final) as other:
        with pytest.raises(StorageError) as refused:
            OutputFolder(UPath(final))
        line = str(refused.value)
        assert "\n" not in line and str(final) in line and "wait for its end" in line
        assert f"process {other.pid} on {socket.gethostname()} since " in line
        other.send_signal(signal.SIGKILL)
        other.wait()
        mine = OutputFolder(UPath(final))
    assert mine.finished("a")
    assert mine.commit({"metadata": {}}).read_bytes("a") == b"theirs"


def test_what_the_first_has_made_meanwhile_is_seen(tmp_path: Path) -> None:
    final = tmp_path / "gold" / "0123"
    with builder(final) as other:
        assert other.stdin and other.stdout
        other.stdin.write("commit\n")
        other.stdin.flush()
        assert other.stdout.readline() == "done\n"
        made = open_output(UPath(final))
        assert made is not None
        again = OutputFolder(UPath(final))  # it is alive, but builds no more
        assert not again.finished("a")
        again.write_bytes("a", b"mine!!")
        assert again.commit({"metadata": {}}).read_bytes("a") == b"mine!!"
    assert [entry.name for entry in final.parent.iterdir()] == ["0123"]
    assert not (final / LOCK).exists()


def test_other_outputs_are_not_held_up(tmp_path: Path) -> None:
    with builder(tmp_path / "gold" / "0123"):
        folder = OutputFolder(UPath(tmp_path / "gold" / "4567"))
        folder.write_bytes("a", b"1")
        assert folder.commit({"metadata": {}}).read_bytes("a") == b"1"


def test_one_process_may_begin_again(tmp_path: Path) -> None:
    first = OutputFolder(UPath(tmp_path / "0123"))
    first.write_bytes("a", b"1")
    second = OutputFolder(first.final)
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(OutputFolder(first.final).finished("a")))
    thread.start()
    thread.join()
    assert second.finished("a") and found == [True]


def test_a_child_neither_holds_nor_ends_the_lock_of_its_parent(tmp_path: Path) -> None:
    folder = OutputFolder(UPath(tmp_path / "0123"))
    pid = os.fork()
    if pid == 0:
        refused = 1
        try:
            OutputFolder(folder.final)
        except StorageError:
            refused = 0
        os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run(
            [sys.executable, "-c", BUILDER, str(tmp_path / "0123")],
            check=True, capture_output=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip


@pytest.mark.parametrize("said", [b"", b"{", b"[]", b'{"pid": 1}'])
def test_a_lock_file_that_nobody_holds_never_blocks(tmp_path: Path, said: bytes) -> None:
    """Whatever it says, and however far in the future."""
    folder = tmp_path / ".0123.partial"
    folder.mkdir()
    (folder / LOCK).write_bytes(said)
    os.utime(folder / LOCK, (4e9, 4e9))
    OutputFolder(UPath(tmp_path / "0123")).write_bytes("a", b"1")
    assert json.loads((folder / LOCK).read_bytes())["pid"] == os.getpid()


@pytest.mark.parametrize("moment", [0.0, 4e9])
def test_a_build_goes_on_whatever_the_clock_says(tmp_path: Path, moment: float) -> None:
    folder = OutputFolder(UPath(tmp_path / "0123"))
    folder.write_bytes("a", b"1")
    for entry in folder.path.rglob("*"):
        os.utime(entry, (moment, moment))
    again = OutputFolder(folder.final)
    assert again.finished("a")
    again.write_bytes("b", b"2")
    undisturbed = OutputFolder(UPath(tmp_path / "4567"))
    for name, data in (("a", b"1"), ("b", b"2")):
        undisturbed.write_bytes(name, data)
    assert again.commit({}).marker == undisturbed.commit({}).marker


def test_the_newest_release_is_that_of_the_highest_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that was set back between two releases changes nothing but the day they tell."""

    class Clock(datetime):
        year_now = 2030

        @classmethod
        def now(cls, tz=None):  # type: ignore[no-untyped-def, override]
            return datetime(cls.year_now, 1, 1, tzinfo=UTC)

    monkeypatch.setattr(registry, "datetime", Clock)
    facts = {
        "model": "net", "kind": "plain", "architecture": "Compact", "scale": 2, "metrics": {},
        "data": {},
    }  # fmt: skip
    for year, content in ((2030, "a"), (2020, "b")):
        Clock.year_now = year
        files = {"net.safetensors": content.encode()}
        made = registry.publish(UPath(tmp_path), files, {**facts, "content": content})
    newest = registry.versions(UPath(tmp_path), "net")[-1]
    assert newest == made and newest.manifest.content == "b"
    assert newest.manifest.created.startswith("2020")
