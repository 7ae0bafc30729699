"""Outputs and files on an object store: what is asked, what a kill leaves, what people are told."""

import shutil

import numpy as np
import pytest
from s3_server import S3Server
from upath import UPath

from sr_assets import remote_files, remote_outputs
from sr_assets.output_folder import OutputFolder, building_folder
from sr_assets.remote_files import RemoteError, listed, read_bytes, remote_path
from sr_assets.storage import MARKER, Output, open_output, open_outputs, root_of, why_not_whole
from sr_assets.stores.shards import ArraySpec, DamagedStoreError, GroupReader, ShardWriter


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SRD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(s3: S3Server) -> UPath:
    return root_of("any", f"s3://{s3.bucket}/project")


def make(final: UPath, files: int = 3, content: bytes = b"x") -> Output:
    folder = OutputFolder(final)
    for number in range(files):
        folder.write_bytes(f"store/{number}", content * (number + 1))
    return folder.commit({"metadata": {"files": files}})


def test_the_environment_names_the_endpoint(s3, root):
    s3.put("project/a", b"1")
    assert read_bytes(root / "a") == b"1"
    assert s3.counts() == {"GET": 1}


def test_a_made_output_costs_a_request_a_file_and_a_few(s3, root):
    output = make(root / "stage" / "0123", files=7)
    assert s3.counts() == {"PUT": 7 + 1, "LIST": 4, "GET": 1}
    assert {k.removeprefix("project/stage/0123/") for k in s3.objects()} == {
        MARKER, *(f"store/{n}" for n in range(7)),
    }  # fmt: skip
    assert open_output(output.path) == output


def test_looking_at_many_outputs_is_a_listing_for_each_first_folder(s3, root, cache):
    made = [make(root / "stage" / f"{n:024x}", content=bytes([n])) for n in range(5)]
    made += [make(root / "other" / "part" / f"{n:024x}") for n in range(3)]
    shutil.rmtree(cache)  # as on another machine
    s3.counts()
    paths = [output.path for output in made]
    assert open_outputs(root, paths) == made
    assert s3.counts() == {"LIST": 2, "GET": 8}
    assert open_outputs(root, paths) == made
    assert s3.counts() == {"LIST": 2}
    assert open_outputs(root, [root / "stage" / "none", paths[0]]) == [None, made[0]]
    assert s3.counts() == {"LIST": 1}
    assert open_output(paths[3]) == made[3]
    assert s3.counts() == {"LIST": 1}
    assert read_bytes(paths[0] / "store/1") == b"\0\0"
    assert s3.counts() == {"GET": 1}


def test_a_store_is_opened_by_a_request_and_read_by_one_a_sample(s3, root):
    pictures = np.random.default_rng(0).integers(0, 255, (64, 8, 8, 3)).astype(np.uint8)
    folder = OutputFolder(root / "stage" / "0123")
    spec = ArraySpec((8, 8, 3), (8, 8, 3), "uint8", ("sample", "y", "x", "channel"))
    writer = ShardWriter(folder, "it.zarr", 64, {"hr": spec}, 16, {})
    for number, samples in enumerate(writer.shards):
        writer.write(number, hr=pictures[samples.start : samples.stop])
    output = folder.commit({"metadata": {}})
    s3.counts()
    reader = GroupReader(output.path / "it.zarr")
    assert s3.counts() == {"GET": 1}
    assert reader.array("hr").shape == pictures.shape
    assert s3.counts() == {"GET": 1}
    assert (reader.read("hr", 5) == pictures[5]).all()
    assert s3.counts() == {"GET": 2}  # the shard's index, the sample
    for index in (6, 1, 5):
        assert (reader.read("hr", index) == pictures[index]).all()
    assert s3.counts() == {"GET": 3}
    wanted = np.array([20, 7, 63, 21])
    assert (reader.read_batch("hr", wanted) == pictures[wanted]).all()
    assert set(counts := s3.counts()) == {"GET"} and counts["GET"] <= 2 + len(wanted)
    s3.put("project/stage/0123/it.zarr/hr/c/1/0/0/0", b"no shard")
    with pytest.raises(DamagedStoreError, match=r"hr.*is damaged"):
        GroupReader(output.path / "it.zarr").read("hr", 20)


def test_a_missing_or_shortened_file_is_seen_and_named(s3, root):
    output = make(root / "stage" / "0123")
    s3.put("project/stage/0123/store/1", b"z")
    assert open_output(output.path) is None
    assert "store/1 of its output 0123 went or changed" in str(why_not_whole(output.path))
    s3.delete("project/stage/0123/store/0")
    assert "and 1 more" in str(why_not_whole(output.path))
    s3.delete(f"project/stage/0123/{MARKER}")
    assert why_not_whole(output.path) is None
    s3.put(f"project/stage/0123/{MARKER}", b"{")
    assert "is damaged" in str(why_not_whole(output.path))
    assert make(output.path) == output  # a broken one is replaced
    assert open_output(output.path) == output


def test_a_marker_that_changed_is_fetched_again_and_a_damaged_copy_is_not_believed(s3, root, cache):
    output = make(root / "stage" / "0123")
    assert open_output(output.path) == output
    [copy] = (cache / "markers").iterdir()
    copy.write_bytes(copy.read_bytes().replace(b'"files": 3', b'"files": 4'))
    assert open_output(output.path) == output
    s3.delete(f"project/stage/0123/{MARKER}")
    other = make(output.path, files=1)
    assert open_output(output.path) == other != output


def test_a_killed_upload_goes_on_where_it_was(s3, root):
    final = root / "stage" / "0123"
    s3.refuse = lambda method, path: method == "PUT" and path.endswith("/store/5")
    with pytest.raises(RemoteError, match="refuses"):
        make(final, files=8)
    there = [key for key in s3.objects() if "/store/" in key]
    assert 5 <= len(there) < 8 and open_output(final) is None
    s3.refuse = lambda method, path: False
    s3.put("project/stage/0123/stranger", b"1")
    s3.counts()
    folder = OutputFolder(final)
    assert len(folder.files) == 8
    output = folder.commit({"metadata": {}})
    assert s3.counts()["PUT"] == 8 - len(there) + 1
    assert open_output(final) == output
    assert "project/stage/0123/stranger" not in s3.objects()
    assert not list(building_folder(final).parent.glob("*"))


def test_what_was_sent_is_sent_again_when_it_changed_since(s3, root):
    final = root / "stage" / "0123"
    s3.refuse = lambda method, path: method == "PUT" and path.endswith(MARKER)
    with pytest.raises(RemoteError):
        make(final, content=b"x")
    s3.refuse = lambda method, path: False
    folder = OutputFolder(final)
    folder.write_bytes("store/0", b"y")  # of the same size
    s3.counts()
    folder.commit({"metadata": {}})
    assert s3.counts()["PUT"] == 1 + 1
    assert s3.objects()["project/stage/0123/store/0"] == b"y"


def test_large_files_go_in_parts_and_unfinished_parts_are_forgotten(s3, root, monkeypatch):
    final, data = root / "stage" / "0123", bytes(range(256)) * (24 << 12)  # 24 MiB
    folder = OutputFolder(final)
    folder.write_bytes("large", data)
    with s3.unnoted() as client:
        key = "project/stage/0123/large"
        client.create_multipart_upload(Bucket=s3.bucket, Key=key)
        client.create_multipart_upload(Bucket=s3.bucket, Key="somebody/elses")
    building_folder(final).with_suffix(".sent").write_text('{"final": "x"}\n')  # a killed upload's
    told = []
    folder.commit({"metadata": {}}, told.append)
    assert told == [len(data)]
    assert s3.objects()[key] == data
    parts = [query for method, _, query in s3.asked if method == "PUT" and "partNumber" in query]
    assert len(parts) == 3
    with s3.unnoted() as client:
        left = client.list_multipart_uploads(Bucket=s3.bucket)["Uploads"]
    assert [one["Key"] for one in left] == ["somebody/elses"]


def test_an_output_that_another_machine_made_meanwhile_stays(s3, root, monkeypatch, tmp_path):
    final = root / "stage" / "0123"
    mine = OutputFolder(final)
    mine.write_bytes("a", b"mine")
    monkeypatch.setenv("SRD_CACHE", str(tmp_path / "another machine"))
    theirs = make(final)
    assert mine.commit({"metadata": {}}) == theirs
    assert open_output(final) == theirs and not mine.path.exists()


def test_what_a_kill_after_the_marker_left_is_swept_by_the_next_upload(s3, root, monkeypatch):
    final = root / "stage" / "0123"
    with monkeypatch.context() as patch:
        patch.setattr(remote_outputs, "sweep", lambda *_: None)  # killed before it
        make(final)
    left = building_folder(final)
    assert left.is_dir()
    make(root / "stage" / "4567")
    assert not left.exists() and not left.with_suffix(".sent").exists()


def test_a_forked_process_opens_its_own_client(s3, root):
    import multiprocessing

    s3.put("project/a", b"1")
    assert read_bytes(root / "a") == b"1"
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(read_bytes, (root / "a",)).get(600) == b"1"
    assert read_bytes(root / "a") == b"1"


def test_a_listing_is_never_kept(s3, root):
    assert listed(root) == {} and not (root / "a").exists()
    s3.put("project/a", b"1")
    assert set(listed(root)) == {"a"} and (root / "a").exists()
    assert [p.name for p in root.iterdir()] == ["a"]
    s3.put("project/b/c", b"1")
    s3.put("projects/d", b"1")
    assert set(listed(root)) == {"a", "b/c"}
    assert {p.name for p in root.iterdir()} == {"a", "b"}


def test_what_cannot_be_used_is_told_in_one_line(s3, root, monkeypatch):
    def line(action) -> str:
        with pytest.raises(RemoteError) as told:
            action()
        assert "\n" not in str(told.value)
        return str(told.value)

    nowhere = remote_path("s3://srd-no-such-bucket/x")
    for action in (lambda: read_bytes(nowhere / "a"), lambda: listed(nowhere)):
        assert "there is no bucket srd-no-such-bucket: create it" in line(action)
    s3.refuse = lambda method, path: True
    assert "check the credentials" in line(lambda: listed(root))
    monkeypatch.setattr(remote_files, "find_spec", lambda name: None)
    assert "pip install 'sr-distillery[s3]'" in line(lambda: remote_path("s3://b/x"))
