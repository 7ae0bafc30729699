"""The tiny project with Dagster's records in a real PostgreSQL, by the settings in `deploy/`.

The server is of the system's packages, started for these tests alone; without one they are skipped.
"""

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.storage.tags import GRPC_INFO_TAG
from PIL import Image
from tiny_project import Project, picture

from sr_assets.lineage.runs import bury_dead_runs

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
_PATIENCE = 600  # seconds until it counts as hung
_PASSWORD = "not/a@simple:one"
_STUDENT = {
    "model/student/checkpoint",
    "model/student/evaluation[bench]",
    "model/student/cost",
    "model/student/export",
    "model/student/release",
    "evaluation/leaderboard",
}


@dataclass(frozen=True)
class Server:
    """A PostgreSQL that listens on this machine alone."""

    port: int

    def variables(self, database: str) -> dict[str, str]:
        """What `deploy/dagster.yaml` reads."""
        return {
            "PG_HOST": "127.0.0.1", "PG_PORT": str(self.port), "PG_USER": "dagster",
            "PG_PASSWORD": _PASSWORD, "PG_DATABASE": database,
        }  # fmt: skip

    def ask(self, database: str, statement: str) -> list[tuple[Any, ...]]:
        """Rows of one statement, which is a transaction of its own."""
        psycopg2 = pytest.importorskip("psycopg2")
        connection = psycopg2.connect(
            host="127.0.0.1", port=self.port, user="dagster", password=_PASSWORD, dbname=database
        )
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    pytest.importorskip("dagster_postgres", reason="dagster-postgres is not installed")
    # Debian keeps them off the path
    places = [os.environ["PATH"], *map(str, Path("/usr/lib/postgresql").glob("*/bin"))]
    where = os.pathsep.join(places)
    programs = {name: shutil.which(name, path=where) for name in ("initdb", "postgres")}
    if not all(programs.values()):
        pytest.skip("no PostgreSQL server (initdb, postgres) is installed")
    account = _account()
    # Not below tmp_path: the server's account may not enter that, and a socket's path is short.
    with tempfile.TemporaryDirectory(prefix="srd-pg-") as name:
        folder = Path(name)
        secret = folder / "password"
        secret.write_text(_PASSWORD)
        if account is not None:
            for path in (folder, secret):
                shutil.chown(path, account)
        log = (folder / "log").open("w")
        subprocess.run(
            [
                *(str(programs["initdb"]), "--pgdata", str(folder / "data"), "--no-sync"),
                *("--username", "dagster", "--auth", "scram-sha-256", "--pwfile", str(secret)),
            ],
            user=account, check=True, stdout=log, stderr=log, cwd=folder,
        )  # fmt: skip
        port = _free_port()
        process = subprocess.Popen(
            [
                *(str(programs["postgres"]), "-D", str(folder / "data"), "-p", str(port)),
                *("-k", str(folder), "-h", "127.0.0.1", "-F"),
            ],
            user=account, stdout=log, stderr=log, cwd=folder,
        )  # fmt: skip
        server = Server(port)
        try:
            _wait(lambda: _answers(port), process, folder / "log")
            _wait(
                lambda: "ready to accept" in (folder / "log").read_text(), process, folder / "log"
            )
            yield server
        finally:
            process.send_signal(
                signal.SIGINT
            )  # without waiting for clients that are still connected
            process.wait(_PATIENCE)
            log.close()


@pytest.fixture
def moved(
    project: Project, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Project, str]]:
    """The built project whose records are to go to a new database, and that database's name."""
    database = f"srd_{uuid.uuid4().hex}"
    postgres.ask("postgres", f"create database {database}")
    for name, value in postgres.variables(database).items():
        monkeypatch.setenv(name, value)
    home = project.folder / "home"
    shutil.rmtree(home)
    home.mkdir()
    shutil.copy(DEPLOY / "dagster.yaml", home)
    yield project, database
    postgres.ask("postgres", f"drop database {database} with (force)")


@pytest.mark.slow
def test_a_project_that_moves_to_postgres_reuses_every_output_and_stays_fresh(
    built: Project, moved: tuple[Project, str], postgres: Server
) -> None:
    project, database = moved
    written = _markers(project)
    assert {row["state"] for row in project.status().values()} == {"missing"}
    project.srd("build")
    status = project.status()
    assert {(row["state"], row["why"]) for row in status.values()} == {("fresh", "")}
    assert _versions(status) == _versions(built.status())
    assert _markers(project) == written, "what was made is used again"

    runs = project.runs()
    assert project.srd("build").stdout == "Everything is fresh: no step ran.\n"
    assert project.runs() == runs > 0
    for table in ("event_logs", "asset_keys", "dynamic_partitions"):
        assert postgres.ask(database, f"select count(*) from {table}")[0][0] > 0, table
    assert postgres.ask(database, "select count(*) from runs") == [(runs,)]
    assert list((project.folder / "home").rglob("*.db")) == [], "nothing went to SQLite"
    settings = project.folder / "home" / "dagster.yaml"
    assert settings.read_bytes() == (DEPLOY / "dagster.yaml").read_bytes()

    # a change of the recipe makes stale what hangs below it, and nothing else
    recipe = project.recipe()
    recipe["models"]["student"]["train"]["steps"] += 10
    project.write_recipe(recipe)
    assert set(project.to_make()) == _STUDENT
    project.srd("build")
    after = project.status()
    assert {row["state"] for row in after.values()} == {"fresh"}
    assert {n for n in after if after[n]["path"] != status[n]["path"]} >= _STUDENT - {
        "model/student/evaluation[bench]", "model/student/cost", "evaluation/leaderboard",
    }  # fmt: skip
    for name in set(after) - _STUDENT:
        assert after[name] == status[name], name

    # and so does a photo more, partition by partition
    photos = project.folder / "other"
    shutil.copytree(recipe["datasets"]["other"]["source"]["path"], photos)
    Image.fromarray(picture(31)).save(photos / "new.png")
    recipe["datasets"]["other"]["source"]["path"] = "other"
    project.write_recipe(recipe)
    why = project.to_make()
    for stage in ("bronze/images", "silver/patches", "gold/pairs", "expert/edsr/cache"):
        assert f"{stage}[other]" in why and f"{stage}[photos]" not in why

    # what runs elsewhere with the same records is not ours to end
    with dg.DagsterInstance.from_config(str(project.folder / "home")) as instance:
        elsewhere = (
            {"srd/lock": uuid.uuid4().hex},
            {GRPC_INFO_TAG: json.dumps({"host": "localhost", "socket": "/nowhere/socket"})},
        )
        for tags in elsewhere:
            instance.create_run_for_job(_job, status=dg.DagsterRunStatus.STARTED, tags=tags)
        assert bury_dead_runs(instance) == []


@dg.op
def _nothing() -> None: ...


@dg.job
def _job() -> None:
    _nothing()


def _versions(status: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name: row["data_version"] for name, row in status.items()}


def _markers(project: Project) -> dict[Path, int]:
    """When each output was finished."""
    return {f: f.stat().st_mtime_ns for f in project.root.rglob("srd.json")}


def _account() -> str | None:
    """Whose processes may serve: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    for name in ("postgres", "nobody"):
        if name in known:
            return name
    pytest.skip("PostgreSQL does not run as root, and there is no other account")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait(
    condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, pause: float = 0.2
) -> None:
    give_up = time.monotonic() + _PATIENCE
    while not condition():
        said = log.read_text() if log.is_file() else ""
        assert process.poll() is None, f"it ended: {said}"
        assert time.monotonic() < give_up, f"waited in vain: {said}"
        time.sleep(pause)
