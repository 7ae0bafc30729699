"""`srd build` on a disk that fills up: one line says so, and the next build goes on."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_project import Project

Resize = Callable[[str], None]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Resize]]:
    """A disk in memory and what changes its size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*words: str) -> None:
        done = subprocess.run(
            ["mount", *words, str(folder)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")

    mount("-t", "tmpfs", "-o", "size=600k", "tmpfs")
    yield folder, lambda size: mount("-o", f"remount,size={size}")
    subprocess.run(["umount", str(folder)], capture_output=True, check=False)


def test_a_build_on_a_full_disk_says_so_and_goes_on(
    empty: Project, disk: tuple[Path, Resize]
) -> None:
    root, resize = disk
    empty.write_recipe({**empty.recipe(), "root": str(root)})
    done = empty.srd("build", "gold/pairs", code=1)
    [line] = [text for text in done.stdout.splitlines() if "FAILED" in text][:1]
    assert "is full: free some space" in line and str(root) in line
    assert "Errno" not in line and "Error:" not in line
    resize("64m")
    assert "Made" in empty.srd("build", "gold/pairs").stdout
    states = {name: row["state"] for name, row in empty.status().items()}
    assert states["gold/pairs[photos]"] == states["gold/pairs[other]"] == "fresh"


def test_a_full_disk_with_dagsters_home_on_it_is_one_line(
    empty: Project, disk: tuple[Path, Resize]
) -> None:
    folder, resize = disk
    project = Project(folder / "project")
    resize("64m")
    project.folder.mkdir()
    project.write_recipe(empty.recipe())
    project.srd("status")
    used = sum(file.stat().st_blocks * 512 for file in folder.rglob("*"))
    resize(str(used + 100_000))
    done = project.srd("build", "gold/pairs", code=1)
    assert "is full" in (done.stdout + done.stderr)
    resize("64m")
    project.srd("build", "gold/pairs")
    assert project.status()["gold/pairs[photos]"]["state"] == "fresh"
