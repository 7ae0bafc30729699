"""What `srd gc` removes and what it leaves where the root is on an object store."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from click.testing import CliRunner
from filelock import FileLock
from fsspec.implementations.memory import MemoryFileSystem
from s3_server import S3Server
from test_gc import STRANGE_MARKERS, build_small
from test_lineage import World
from upath import UPath

from sr_assets import remote_files, root_contents
from sr_assets.cli import main
from sr_assets.lineage.stage import StageError
from sr_assets.output_folder import OutputFolder, building_folder
from sr_assets.remote_files import RemoteError, Upload, listed, unfinished_uploads
from sr_assets.storage import MARKER, open_output, root_of
from sr_assets.stores.registry import publish
from sr_assets.unneeded import Findings, find_unneeded, remove

PLACE = "project/upper/text/a/"
STRANGE = "a" * 24
OLD = ["total/text", "upper/text[a]", "upper/text[b]"]


class RemoteWorld(World):
    """The small graph with its root anywhere."""

    def __init__(self, root: UPath, instance: dg.DagsterInstance) -> None:
        super().__init__(root, instance)  # type: ignore[arg-type]
        self.root = root


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SRD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral(str(tmp_path)) as instance:
        yield instance


@pytest.fixture
def world(s3: S3Server, instance: dg.DagsterInstance) -> RemoteWorld:
    """Built twice, the second time with another mark, so that the first outputs are superseded."""
    return twice(RemoteWorld(root_of("any", f"s3://{s3.bucket}/project"), instance))


def twice(world: Any) -> Any:
    world.make()
    world.settings = {"upper.mark": "?"}
    world.make()
    return world


def find(world: World, older_than: float = -1.0, dropped: bool = False) -> Findings:
    """The clock of S3 counts whole seconds: by default, what was written just now is old."""
    return find_unneeded(world.graph(), world.instance, older_than=older_than, dropped=dropped)


def names(found: Findings) -> list[str]:
    return sorted(item.name for item in found.unneeded)


def seen(found: Findings) -> tuple[Any, ...]:
    """A decision, without where it was made."""
    rows = sorted((item.name, item.kind, item.files) for item in found.unneeded)
    return rows, found.theirs, len(found.unknown)


def keys(s3: S3Server) -> set[str]:
    with s3.unnoted():
        return set(s3.objects("project/"))


def grow_old(s3: S3Server, prefix: str, hours: float) -> None:
    """Makes objects as old as if they had been written that long ago."""
    from moto.s3.models import s3_backends

    [bucket] = [
        backend.buckets[s3.bucket]
        for regions in s3_backends.values()
        for backend in regions.values()
        if s3.bucket in backend.buckets
    ]
    found = [key for name, key in bucket.keys.items() if name.startswith(prefix)]
    assert found
    for key in found:
        key.last_modified -= timedelta(hours=hours)


def test_superseded_outputs_go_and_everything_stays_fresh(
    world: RemoteWorld, s3: S3Server, cache: Path
) -> None:
    before = s3.objects("project/")
    found = find(world)
    assert names(found) == OLD and {item.kind for item in found.unneeded} == {"output"}
    gone = {k for k in before if any(k.startswith(u.path.path[len(s3.bucket) + 1 :] + "/")
                                     for u in found.unneeded)}  # fmt: skip
    assert len(gone) == 3 * 2 and found.bytes_freed == sum(len(before[key]) for key in gone)
    assert remove(found) == 3
    assert keys(s3) == before.keys() - gone
    locks = {building_folder(i.folder.final).with_suffix(".lock") for i in found.unneeded}
    assert not locks & set((cache / "building").iterdir())
    assert not world.behind() and not names(find(world))
    world.settings = {"upper.mark": "!"}
    assert len(world.make().made) == 3 and len(world.ran) == 3  # no longer free
    assert not world.behind(), "copies of markers of outputs that went are no trouble"


def test_the_decision_is_that_of_a_local_root(
    world: RemoteWorld, s3: S3Server, tmp_path: Path
) -> None:
    (tmp_path / "local" / "root").mkdir(parents=True)
    with dg.DagsterInstance.ephemeral(str(tmp_path / "local")) as instance:
        local = twice(World(tmp_path / "local" / "root", instance))

        def same() -> None:
            for old in (-1.0, 1.0):
                for dropped in (False, True):
                    assert seen(find(world, old, dropped)) == seen(find(local, old, dropped))

        same()
        for one in (world, local):
            one.texts["a"] = "three"
            one.make()
        same()
        for one in (world, local):
            theirs = type(one)(one.folder, one.instance)
            theirs.texts = {"c": "four"}
            theirs.make(["upper/text[c]"])
            theirs.settings = {"upper.mark": "?"}
            theirs.make(["upper/text[c]"])
        same()
        for one in (world, local):
            one.settings = {"upper.mark": "!"}  # back, and not built yet
        same()
        for one in (world, local):
            one.make()
            [damaged] = [i.path for i in find(one).unneeded if i.name == "upper/text[b]"]
            if isinstance(damaged, Path):
                (damaged / "text").unlink()
            else:
                s3.delete(f"{damaged.path}/text".removeprefix(f"{s3.bucket}/"))
        same()
        assert len(find(world).unknown) == 1
        for one in (world, local):
            version = min(
                item.folder.output.data_version
                for item in find(one).unneeded
                if item.name == "total/text" and item.folder.output
            )
            publish(
                UPath(one.folder) / "registry",
                {"weights": b"w"},
                {
                    "model": "m", "kind": "plain", "architecture": "Compact", "scale": 4,
                    "metrics": {}, "content": "c", "data": {"total/text": version},
                },
            )  # fmt: skip
        same()
        remove(find(world, dropped=True))
        remove(find(local, dropped=True))
        same()
        for one in (world, local):
            assert not one.behind() and not names(find(one, dropped=True))


def test_what_is_young_stays(world: RemoteWorld, s3: S3Server) -> None:
    assert names(find(world, older_than=1.0)) == []
    old = next(item for item in find(world).unneeded if item.name == "upper/text[a]")
    start = old.path.path.removeprefix(f"{s3.bucket}/") + "/"
    grow_old(s3, start + "text", hours=3)
    assert names(find(world, older_than=1.0)) == []
    grow_old(s3, start + MARKER, hours=3)
    assert names(find(world, older_than=1.0)) == ["upper/text[a]"]


@pytest.mark.parametrize("dropped", [False, True])
def test_killed_between_marker_and_files_nothing_half_is_left_and_gc_goes_on(
    world: RemoteWorld, s3: S3Server, dropped: bool
) -> None:
    """Also where the recipe has dropped what it was of."""
    if dropped:
        del world.texts["b"]
        world.make()
    found = find(world, dropped=dropped)
    assert "upper/text[b]" in names(found)
    posts: list[str] = []

    def second(method: str, path: str) -> bool:
        posts.extend([path] if method == "POST" else [])
        return method == "POST" and len(posts) > 1

    s3.refuse = second
    with pytest.raises(RemoteError, match="refuses"):
        remove(found)
    s3.refuse = lambda method, path: False
    markerless = {k.rpartition("/")[0] for k in keys(s3)} - {
        k.rpartition("/")[0] for k in keys(s3) if k.endswith(MARKER)
    }
    assert len(markerless) == 1 and not world.behind()
    again = find(world, dropped=dropped)
    assert {item.kind for item in again.unneeded} == {"output", "building"}
    assert remove(again) == len(found.unneeded)
    left = find(world, dropped=dropped)
    assert not left.unneeded and not left.unknown and not world.behind()
    assert len([k for k in keys(s3) if k.endswith(MARKER)]) == len(keys(s3)) / 2


def test_a_marker_that_does_not_go_keeps_its_files(
    world: RemoteWorld, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, found = keys(s3), find(world)
    with monkeypatch.context() as patch:
        patch.setattr("sr_assets.removal.remove_objects", lambda folder, names: None)
        with pytest.raises(RemoteError, match="still listed"):
            remove(found)
    assert keys(s3) == before


def test_what_the_store_keeps_is_told(world: RemoteWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = remote_files.file_system(world.root)
    asked = fs.call_s3

    def refusing(method: str, **words: Any) -> Any:
        if method == "delete_objects":
            key = words["Delete"]["Objects"][0]["Key"]
            return {"Errors": [{"Key": key, "Code": "AccessDenied"}]}
        return asked(method, **words)

    monkeypatch.setattr(fs, "call_s3", refusing)
    with pytest.raises(RemoteError, match=r"srd.json cannot be removed \(AccessDenied\): check"):
        remove(find(world))


def test_requests_do_not_grow_with_the_files_of_an_output(
    world: RemoteWorld, s3: S3Server, cache: Path
) -> None:
    few = s3.counts() and find(world) and s3.counts()
    # the root, its three first folders twice, the registry, of which s3fs looks twice whether it is
    # there; unfinished uploads
    assert few == {"LIST": 1 + 2 * 3 + 2, "GET": 1}
    old = next(item for item in find(world).unneeded if item.name == "upper/text[a]")
    for number in range(40):
        s3.put(f"{old.path.path.removeprefix(s3.bucket + '/')}/more/{number}", b"x")
    s3.counts()
    found = find(world)
    assert s3.counts() == few
    assert [item.files for item in found.unneeded if item.name == "upper/text[a]"] == [42]
    assert remove(found) == 3
    # of each: its files before and after its marker went; the marker, the others
    assert s3.counts() == {"LIST": 3 * 2, "POST": 3 * 2}
    shutil.rmtree(cache)  # another machine
    s3.counts()
    find(world)
    assert s3.counts() == {"LIST": few["LIST"], "GET": 1 + 5}


def test_objects_go_in_bulks(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    root = root_of("any", f"s3://{s3.bucket}/project")
    for number in range(25):
        s3.put(f"project/{number}[x]*", b"x")
    s3.put("project/25x", b"x")
    monkeypatch.setattr(remote_files, "_BULK", 10)
    s3.counts()
    remote_files.remove_objects(root, [f"{number}[x]*" for number in range(25)])
    assert s3.counts() == {"POST": 3} and keys(s3) == {"project/25x"}


def test_the_registry_is_never_touched(world: RemoteWorld, s3: S3Server) -> None:
    for key in (f"m/{STRANGE}/weights", f"m/1.0.0/{STRANGE}/{MARKER}"):
        s3.put(f"project/registry/{key}", b"{}")
    with s3.unnoted() as client:
        client.create_multipart_upload(Bucket=s3.bucket, Key=f"project/registry/m/{STRANGE}/large")
    found = find(world, dropped=True)
    assert names(found) == OLD and not found.unknown
    remove(found)
    assert len([key for key in keys(s3) if key.startswith("project/registry/")]) == 2
    assert len(unfinished_uploads(world.root)) == 1


def test_markers_that_are_none_of_ours_stay(world: RemoteWorld, s3: S3Server) -> None:
    for number, marker in enumerate(STRANGE_MARKERS):
        s3.put(f"{PLACE}{number:024x}/{MARKER}", marker)
    found = find(world)
    assert len(found.unknown) == len(STRANGE_MARKERS) and names(found) == OLD


def test_a_half_sent_output_stays_while_it_is_young_or_may_be_wanted(
    world: RemoteWorld, s3: S3Server
) -> None:
    s3.put(f"{PLACE}{STRANGE}/text", b"x")
    s3.put(f"project/mine/{STRANGE}/text", b"x")  # nobody knows whose
    s3.put("project/upper/text/a/readme", b"x")
    assert names(find(world, older_than=1.0)) == []
    grow_old(s3, f"{PLACE}{STRANGE}", hours=3)
    found = find(world, older_than=1.0)
    assert [(i.name, i.kind, i.files) for i in found.unneeded] == [("upper/text/a", "building", 1)]
    assert [path.path for path in found.unknown] == [f"{s3.bucket}/project/mine/{STRANGE}"]

    world.texts["b"] = "not built yet"
    assert "upper/text/a" not in names(find(world))
    world.make()
    with FileLock(building_folder(world.root / "upper/text/a" / STRANGE).with_suffix(".lock")):
        assert "upper/text/a" not in names(find(world, older_than=1.0))
        assert remove(found) == 0
    s3.put(f"{PLACE}{STRANGE}/more", b"x")  # somebody goes on sending
    assert remove(found) == 0
    grow_old(s3, f"{PLACE}{STRANGE}/more", hours=3)
    s3.put(f"{PLACE}{STRANGE}/{MARKER}", b"{}")
    grow_old(s3, f"{PLACE}{STRANGE}/{MARKER}", hours=3)
    assert remove(found) == 0
    s3.delete(f"{PLACE}{STRANGE}/{MARKER}")
    assert remove(find(world, older_than=1.0)) == 1
    assert not [key for key in keys(s3) if key.startswith(f"{PLACE}{STRANGE}")]
    assert f"{PLACE}readme" in keys(s3) and f"project/mine/{STRANGE}/text" in keys(s3)


def test_what_killed_builds_left_on_this_machine_goes(
    world: RemoteWorld, s3: S3Server, cache: Path
) -> None:
    final = world.root / "upper/text/a" / STRANGE
    killed = OutputFolder(final)
    killed.write_bytes("text", b"x" * 5000)
    elsewhere = OutputFolder(root_of("any", f"s3://{s3.bucket}/project2") / "upper/text/a" / "b")
    sent = world.root / "total/text" / ("c" * 24)
    only_sent = building_folder(sent)
    only_sent.with_suffix(".sent").write_text(json.dumps({"final": str(sent)}) + "\n")
    (cache / "building" / "stranger").mkdir()
    assert names(find(world, older_than=1.0)) == []
    found = [item for item in find(world).unneeded if item.kind == "building"]
    assert [(i.path, i.name) for i in found] == [
        (path, name)
        for path, name in sorted([(killed.path, "upper/text/a"), (only_sent, "total/text")])
    ]
    assert sum(f.size for i in found for f in i.folder.files) >= 5000
    lock = killed.path.with_suffix(".lock")
    with FileLock(lock):
        assert names(find(world)) == sorted([*OLD, "total/text"])
    assert remove(find(world)) == 3 + 2
    left = {path for path in (cache / "building").iterdir() if path.suffix != ".lock"}
    assert left == {elsewhere.path, cache / "building" / "stranger"} and not lock.exists()

    current = next(o for o in world.root.glob("upper/text/a/*"))
    s3.delete(f"{current.path.removeprefix(s3.bucket + '/')}/{MARKER}")
    OutputFolder(current).write_bytes("text", b"going on")
    assert names(find(world)) == []
    assert building_folder(current).exists()


def test_unfinished_uploads_are_ended_when_they_are_old(
    world: RemoteWorld, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = next(path.path for path in world.root.glob("total/text/*"))
    wanted = f"{whole.removeprefix(s3.bucket + '/')}/large"
    with s3.unnoted() as client:
        for key in (f"{PLACE}{STRANGE}/large", wanted, f"project/mine/{STRANGE}/x", "elsewhere"):
            client.create_multipart_upload(Bucket=s3.bucket, Key=key)  # moto calls them old
    s3.put(f"{PLACE}{STRANGE}/text", b"young")
    found = find(world, older_than=1.0)
    assert names(found) == [] and len(found.unknown) == 1
    grow_old(s3, "project/", hours=3)

    def young(folder: UPath) -> list[Upload]:
        return [replace(upload, begun=4e9) for upload in unfinished_uploads(folder)]

    with monkeypatch.context() as patch:
        patch.setattr(root_contents, "unfinished_uploads", young)
        assert "uploads" not in {item.kind for item in find(world, older_than=1.0).unneeded}
    uploads = [i for i in find(world, older_than=1.0).unneeded if i.kind == "uploads"]
    assert sorted(item.name for item in uploads) == ["total/text", "upper/text/a"]
    with s3.unnoted() as client:
        [gone] = [u for u in unfinished_uploads(world.root) if u.name.startswith("total/")]
        client.abort_multipart_upload(Bucket=s3.bucket, Key=wanted, UploadId=gone.id)
    assert remove(replace(found, unneeded=tuple(uploads))) == 2
    assert [u.name for u in unfinished_uploads(world.root)] == [f"mine/{STRANGE}/x"]
    assert open_output(UPath(f"s3://{whole}")) is not None
    assert f"{PLACE}{STRANGE}/text" in keys(s3)


def test_unfinished_uploads_are_listed_page_by_page(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = root_of("any", f"s3://{s3.bucket}/project")
    with s3.unnoted() as client:
        for name in "abc":
            client.create_multipart_upload(Bucket=s3.bucket, Key=f"project/{name}")
    fs = remote_files.file_system(root)
    everything = fs.call_s3("list_multipart_uploads", Bucket=s3.bucket, Prefix="project/")

    def paged(method: str, **words: Any) -> Any:
        number = [None, "project/a", "project/b"].index(words.get("KeyMarker"))
        one = everything["Uploads"][number]
        more = {"NextKeyMarker": one["Key"], "NextUploadIdMarker": one["UploadId"]}
        return {"Uploads": [one], "IsTruncated": number < 2, **(more if number < 2 else {})}

    monkeypatch.setattr(fs, "call_s3", paged)
    assert [upload.name for upload in unfinished_uploads(root)] == ["a", "b", "c"]


def test_any_store_of_fsspec_will_do(instance: dg.DagsterInstance) -> None:
    MemoryFileSystem.store.clear()
    world = twice(RemoteWorld(root_of("any", "memory://bucket/project"), instance))
    assert names(find(world, older_than=1.0)) == []
    found = find(world)
    assert names(found) == OLD and remove(found) == 3
    assert not names(find(world)) and not world.behind()
    assert len(listed(world.root)) == 5 * 2


def test_an_empty_bucket_has_nothing_to_remove(s3: S3Server, instance: dg.DagsterInstance) -> None:
    world = RemoteWorld(root_of("any", f"s3://{s3.bucket}/project"), instance)
    assert find(world) == Findings((), 0, (), ())


def test_the_command_shows_first_and_looks_again_before_it_removes(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_small(tmp_path, monkeypatch, f"s3://{s3.bucket}/project")
    left = [f"project/gold/pairs/d/{letter * 24}/part" for letter in "01"]
    for key in left:
        s3.put(key, b"x" * 2000)
    before = keys(s3)

    def gc(*words: str) -> str:
        done = CliRunner().invoke(main, ["gc", "-r", "r.yaml", *words])
        assert done.exit_code == 0, done.output
        return done.output

    said = gc("--older-than", "1", "--dry-run")
    assert "Nothing to remove." in said
    grow_old(s3, "project/gold/pairs/d/", hours=3)
    with s3.unnoted() as client:
        client.create_multipart_upload(Bucket=s3.bucket, Key=f"{left[0]}-large")
    said = gc("--older-than", "1", "--dry-run")
    assert "gold/pairs/d: 2 half-built folders, 2 files" in said
    assert "gold/pairs/d: 1 unfinished upload\n" in said
    assert "3 folders can go: 4.0 kB freed." in said and keys(s3) == before

    from sr_assets import unneeded

    looked: list[Findings] = []

    def watched(*args: Any, **words: Any) -> Findings:
        if looked:  # somebody thought long
            s3.put(left[1], b"y" * 2000)
        looked.append(find_unneeded(*args, **words))
        return looked[-1]

    monkeypatch.setattr(unneeded, "find_unneeded", watched)
    report = json.loads(gc("--older-than", "1", "--yes", "--json"))
    assert len(looked) == 2 and report["removed"] == 2 and len(report["unneeded"]) == 3
    assert report["bytes_freed"] == 4000
    assert {row["kind"] for row in report["unneeded"]} == {"building", "uploads"}
    assert report["unneeded"][0]["path"].startswith(f"s3://{s3.bucket}/project/gold/pairs/d/")
    assert keys(s3) == before - {left[0]}
    assert not unfinished_uploads(root_of("r", f"s3://{s3.bucket}/project"))


def test_the_refusal_of_a_run_in_progress_comes_before_any_request(
    world: RemoteWorld, s3: S3Server
) -> None:
    world.instance.create_run_for_job(
        dg.GraphDefinition("other").to_job(), status=dg.DagsterRunStatus.STARTED
    )
    s3.counts()
    with pytest.raises(StageError, match="is in progress"):
        find(world)
    assert s3.counts() == {}


def test_an_output_of_this_home_alone_is_known(
    world: RemoteWorld, tmp_path: Path, s3: S3Server
) -> None:
    with dg.DagsterInstance.ephemeral(str(tmp_path / "elsewhere")) as other:
        found = find_unneeded(world.graph(), other, older_than=-1.0)
    assert found.unneeded == () and len(found.unknown) == 3
