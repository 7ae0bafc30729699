"""The whole project with its root on an S3 server: the same graph, by the real command."""

import json
import threading
from pathlib import Path

import pytest
from s3_server import S3Server
from test_build import EVERYTHING
from tiny_project import Project, tiny_recipe

CACHE = "expert/edsr/cache[photos]"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of its own: what is kept on this machine lies below it."""
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    return tmp_path / "user" / ".cache" / "sr-distillery"


def test_the_same_graph_runs_on_s3(tmp_path: Path, home: Path, sources: Path, s3: S3Server) -> None:
    (tmp_path / "project").mkdir()
    project = Project(tmp_path / "project")
    project.write_recipe({**tiny_recipe(sources), "root": f"s3://{s3.bucket}/tiny"})
    project.srd("build")
    left = {file.suffix for file in (home / "building").iterdir()}
    assert left == {".lock"}, "what was sent is still on this machine"
    s3.counts()
    status = project.status()
    # one listing for each of bronze, silver, gold, expert, model and evaluation; the datasets
    # that `srd add-dataset` registered: there are none
    assert s3.counts() == {"LIST": 6, "GET": 1}
    assert {name: row["state"] for name, row in status.items()} == dict.fromkeys(
        EVERYTHING, "fresh"
    )
    runs = project.runs()
    assert project.srd("build").stdout == "Everything is fresh: no step ran.\n"
    assert project.runs() == runs

    project.srd("verify", CACHE)
    _flip_and_verify(project, s3, status[CACHE]["path"])
    _kill_and_resume(project, s3, home, status)

    _collect(project, s3)
    project.write_recipe({**project.recipe(), "root": "s3://srd-no-such-bucket/tiny"})
    told = project.srd("status", code=1).stderr
    assert "there is no bucket srd-no-such-bucket" in told and told.count("\n") == 1


def _flip_and_verify(project: Project, s3: S3Server, path: str) -> None:
    key, data = max(s3.objects(_key(path, s3)).items(), key=lambda one: len(one[1]))
    damaged = bytearray(data)
    damaged[len(data) // 3] ^= 1
    s3.put(key, bytes(damaged))
    found = project.srd("verify", CACHE, "--json", code=1).stdout
    assert key.removeprefix(_key(path, s3)) in found
    assert [name for name, lines in json.loads(found).items() if lines] == [CACHE]
    s3.put(key, data)
    project.srd("verify", CACHE)


def _kill_and_resume(project: Project, s3: S3Server, home: Path, status: dict) -> None:
    """A build that is killed while it sends an output, and the next, which goes on."""
    folder = _key(status[CACHE]["path"], s3)
    before = s3.objects(folder)
    for key in before:
        s3.delete(key)
    begun: list[str] = []
    go_on = threading.Event()

    def hold(method: str, path: str) -> bool:
        if method == "PUT" and folder in path:
            begun.append(path)
            if len(begun) > 3:
                go_on.wait(600)
        return False

    def journal() -> list[str]:
        lines = [
            text for f in (home / "building").glob("*.sent") for text in f.read_text().split("\n")
        ]
        return [json.loads(line)["name"] for line in lines[1:] if line.endswith("}")]

    s3.refuse = hold
    project.kill_when(lambda: len(begun) > 3 and bool(journal()), "build", CACHE)
    go_on.set()
    s3.refuse = lambda method, path: False
    sent = journal()
    assert f"{folder}srd.json" not in s3.objects(folder)
    assert project.status()[CACHE]["state"] == "missing"
    s3.counts()
    project.srd("build")
    again = [path for method, path, _ in s3.asked if method == "PUT" and folder in path]
    assert again and not {f"/{s3.bucket}/{folder}{name}" for name in sent} & set(again)
    after = s3.objects(folder)
    marker = f"{folder}srd.json"
    assert {k: v for k, v in after.items() if k != marker} == {
        k: v for k, v in before.items() if k != marker
    }
    assert project.status()[CACHE] == status[CACHE]


def _collect(project: Project, s3: S3Server) -> None:
    """Removes what another machine has sent half way, and nothing else."""
    before = s3.objects()
    s3.put(f"tiny/gold/pairs/photos/{'0' * 24}/part", b"x" * 2000)
    assert "Nothing to remove." in project.srd("gc", "--yes").stdout
    said = project.srd("gc", "--yes", "--older-than", "0").stdout
    assert "gold/pairs/photos: 1 half-built folder, 1 file\n1 folder can go: 2.0 kB freed." in said
    assert s3.objects() == before


def _key(path: str, s3: S3Server) -> str:
    return path.removeprefix(f"s3://{s3.bucket}/") + "/"
