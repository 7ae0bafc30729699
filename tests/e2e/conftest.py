"""The tiny project of the end-to-end tests: built once, copied for each test that changes it."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from fusion_project import fusion_recipe
from tiny_project import Project, make_sources, tiny_recipe


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what is made once, by whichever worker comes first."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def sources(shared_folder: Path) -> Path:
    """Pictures and expert weights; no test changes them."""
    return _once(shared_folder / "sources", make_sources)


@pytest.fixture(scope="session")
def built(shared_folder: Path, sources: Path) -> Project:
    """The whole project, built by `srd build` from nothing; no test changes it."""

    def build(folder: Path) -> None:
        folder.mkdir()
        project = Project(folder)
        project.write_recipe(tiny_recipe(sources))
        (folder / "built.log").write_text(project.srd("build").stdout)

    return Project(_once(shared_folder / "tiny", build))


@pytest.fixture(scope="session")
def fused(shared_folder: Path, sources: Path) -> Project:
    """The project with full fusions, built by `srd build` from nothing; no test changes it."""

    def build(folder: Path) -> None:
        folder.mkdir()
        project = Project(folder)
        project.write_recipe(fusion_recipe(sources))
        done = project.srd("build", "model/*/checkpoint", "model/*/release", "model/taught/export")
        (folder / "built.log").write_text(done.stderr)

    return Project(_once(shared_folder / "fused", build))


@pytest.fixture
def project(built: Project, tmp_path: Path) -> Iterator[Project]:
    """A copy of the built project that a test may change."""
    copy = built.copy_to(tmp_path / "project")
    yield copy
    shutil.rmtree(copy.folder)


@pytest.fixture
def empty(sources: Path, tmp_path: Path) -> Project:
    """A project with nothing but its recipe."""
    (tmp_path / "empty").mkdir()
    project = Project(tmp_path / "empty")
    project.write_recipe(tiny_recipe(sources))
    return project


def _once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Makes `folder` unless another worker has done so."""
    with FileLock(folder.with_suffix(".lock")):
        done = folder.with_suffix(".done")
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            done.touch()
    return folder
