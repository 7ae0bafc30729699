"""Shards are whole or absent, whatever kills the writer; damage is an error, never a picture."""

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from upath import UPath
from zarr.codecs import BloscCodec, ZstdCodec

from sr_assets.output_folder import OutputFolder
from sr_assets.storage import Output, open_output
from sr_assets.stores.codecs import PictureDelta
from sr_assets.stores.hashing import HashingStore, reader_store
from sr_assets.stores.schema import SchemaError
from sr_assets.stores.shards import ArraySpec, DamagedStoreError, GroupReader, ShardWriter

SCHEMA = {"name": "test.pictures", "version": 1}
COUNT, SIDE = 10, 16

SPECS = {
    "hr": ArraySpec(
        shape=(SIDE, SIDE, 3),
        chunk=(SIDE, SIDE, 3),
        dtype="uint8",
        axes=("n", "y", "x", "channel"),
        filters=(PictureDelta(subtract_green=True),),
        compressors=(ZstdCodec(level=1),),
    ),
    "sr": ArraySpec(
        shape=(2, 3, SIDE, SIDE),
        chunk=(1, 3, SIDE, SIDE),
        dtype="int16",
        axes=("n", "variant", "channel", "y", "x"),
        filters=(PictureDelta(zigzag=True, channel_axis=-3),),
        compressors=(BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle", typesize=2),),
    ),
}


def values() -> dict[str, np.ndarray]:
    random = np.random.default_rng(7)
    hr = random.integers(0, 256, (COUNT, SIDE, SIDE, 3), np.uint8)
    hr[:4] = 0  # a whole shard of the fill value
    sr = random.integers(-3000, 3000, (COUNT, 2, 3, SIDE, SIDE)).astype(np.int16)
    return {"hr": hr, "sr": sr}


def writer(folder: OutputFolder, provenance: str = "monday", side: int = SIDE) -> ShardWriter:
    specs = SPECS
    if side != SIDE:
        specs = {"hr": ArraySpec((side, side, 3), (side, side, 3), "uint8", ("n", "y", "x", "c"))}
    return ShardWriter(
        folder,
        "g.zarr",
        COUNT,
        specs,
        4,
        {"schema": SCHEMA, "provenance": provenance},
        columns={"image": np.arange(COUNT, dtype=np.int32)},
    )


def write_shards(shards: ShardWriter, which: list[int] | None = None) -> None:
    data = values()
    for i in range(len(shards.shards)) if which is None else which:
        part = slice(shards.shards[i].start, shards.shards[i].stop)
        shards.write(i, **{name: array[part] for name, array in data.items()})


def built(where: Path) -> Output:
    folder = OutputFolder(UPath(where))
    write_shards(writer(folder))
    return folder.commit({"metadata": {}})


def contents(output: Output) -> dict[str, bytes]:
    return {name: output.read_bytes(name) for name in output.marker["files"]}


def test_shards_cover_the_samples_in_order(tmp_path):
    shards = writer(OutputFolder(UPath(tmp_path / "out")))
    assert shards.shards == [range(0, 4), range(4, 8), range(8, 10)]
    assert [shards.finished(i) for i in range(3)] == [False] * 3
    write_shards(shards, [1])
    assert [shards.finished(i) for i in range(3)] == [False, True, False]


def test_what_was_written_is_read_by_us_and_by_plain_zarr(tmp_path):
    output, data = built(tmp_path / "out"), values()
    group = zarr.open_group(str(output.path / "g.zarr"), mode="r")
    for name, array in data.items():
        assert group[name].dtype == array.dtype
        assert np.array_equal(group[name][:], array)
    assert group["image"][:].tolist() == list(range(COUNT))
    reader = GroupReader(output.path / "g.zarr", "test.pictures", 1)
    for i in range(COUNT):
        assert np.array_equal(reader.read("hr", i), data["hr"][i])
        assert np.array_equal(reader.read("sr", np.int64(i), 1), data["sr"][i, 1])
    for outside in (-1, COUNT):
        with pytest.raises(IndexError, match="hr: index"):
            reader.read("hr", outside)


def test_a_shard_that_is_all_zero_has_its_file(tmp_path):
    output = built(tmp_path / "out")
    assert "g.zarr/hr/c/0/0/0/0" in output.marker["files"]


def test_provenance_is_no_content_and_layout_is(tmp_path):
    versions = []
    for name, provenance, side in (("a", "monday", 16), ("b", "tuesday", 16), ("c", "monday", 8)):
        folder = OutputFolder(UPath(tmp_path / name))
        writer(folder, provenance, side)
        versions.append(folder.data_version())
    assert versions[0] == versions[1] != versions[2]


def test_the_same_bytes_whatever_the_threads_and_the_order(tmp_path):
    expected = contents(built(tmp_path / "plain"))
    folder = OutputFolder(UPath(tmp_path / "threads"))
    shards = writer(folder)
    with (
        zarr.config.set({"async.concurrency": 64, "threading.max_workers": 8}),
        ThreadPoolExecutor(3) as pool,
    ):
        list(pool.map(lambda i: write_shards(shards, [i]), (2, 0, 1)))
    assert contents(folder.commit({"metadata": {}})) == expected


def test_arrays_of_another_shape_type_or_name_are_refused(tmp_path):
    shards = writer(OutputFolder(UPath(tmp_path / "out")))
    part = {name: array[:4] for name, array in values().items()}
    for wrong in (
        {"hr": part["hr"]},
        {**part, "more": part["hr"]},
        {**part, "hr": part["hr"][:3]},
        {**part, "hr": part["hr"].astype(np.float32)},
    ):
        with pytest.raises(ValueError, match="shard 0"):
            shards.write(0, **wrong)
    assert not shards.finished(0)


def test_an_empty_store_is_a_store(tmp_path):
    folder = OutputFolder(UPath(tmp_path / "out"))
    empty = np.zeros(0, np.int32)
    shards = ShardWriter(folder, "g.zarr", 0, SPECS, 4, {"schema": SCHEMA}, {"image": empty})
    assert shards.shards == []
    reader = GroupReader(folder.commit({}).path / "g.zarr", "test.pictures", 1)
    assert reader.read("image", slice(None)).shape == (0,)
    assert reader.array("hr").shape == (0, SIDE, SIDE, 3)


def test_another_layout_in_a_folder_starts_anew(tmp_path):
    folder = OutputFolder(UPath(tmp_path / "out"))
    folder.write_bytes("other.json", b"{}")
    write_shards(writer(folder))
    again = OutputFolder(folder.final)
    shards = writer(again, side=8)
    assert not any(shards.finished(i) for i in range(3))
    assert "g.zarr/sr/c/0/0/0/0/0" not in again.files and again.finished("other.json")


def test_the_same_layout_with_new_provenance_keeps_its_shards(tmp_path):
    folder = OutputFolder(UPath(tmp_path / "out"))
    write_shards(writer(folder), [0, 2])
    again = OutputFolder(folder.final)
    shards = writer(again, "tuesday")
    assert [shards.finished(i) for i in range(3)] == [True, False, True]
    write_shards(shards, [1])
    output = again.commit({})
    reader = GroupReader(output.path / "g.zarr", "test.pictures", 1)
    assert reader.attributes["provenance"] == "tuesday"


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from upath import UPath
from sr_assets.output_folder import OutputFolder
import test_stores_shards as t
left = int(sys.argv[2])
def dying(real):
    def call(*args):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args)
    return call
# one step each: before a file is renamed into place, and before it is journaled
OutputFolder._put = dying(OutputFolder._put)
OutputFolder._enter = dying(OutputFolder._enter)
folder = OutputFolder(UPath(sys.argv[1]))
shards = t.writer(folder)
todo = [i for i in range(3) if not shards.finished(i)]
t.write_shards(shards, todo)
folder.commit({"metadata": {}})
"""


def test_killed_between_any_two_writes_it_resumes_to_the_same_bytes(tmp_path):
    expected = built(tmp_path / "undisturbed")
    where = tmp_path / "killed"

    def run(steps: int) -> int:
        here = str(Path(__file__).parent)
        return subprocess.run(
            [sys.executable, "-c", KILLED, str(where), str(steps), here], check=False
        ).returncode

    # Killed among the metadata, in the middle of shard 0, between shards, and in the middle of
    # shard 1: each life takes over what the last one left.
    for steps in (5, 7, 4, 3):
        assert run(steps) == -signal.SIGKILL
        assert not where.exists()
    assert run(1000) == 0

    output = open_output(UPath(where))
    assert output is not None and output.data_version == expected.data_version
    assert contents(output) == contents(expected)
    assert not [p for p in where.rglob("*") if p.name.endswith((".tmp", ".partial"))]


@pytest.mark.parametrize("array", ["hr", "sr", "image"])
def test_a_flipped_byte_is_an_error_wherever_it_is(tmp_path, array):
    output, data = built(tmp_path / "out"), values()
    data["image"] = np.arange(COUNT, dtype=np.int32)
    key = (
        next(n for n in output.marker["files"] if n.startswith(f"g.zarr/{array}/c/1"))
        if (array != "image")
        else "g.zarr/image/c/0"
    )
    path = Path(str(output.path)) / key
    whole = path.read_bytes()
    raised = 0
    for position in range(0, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        reader = GroupReader(output.path / "g.zarr", "test.pictures", 1)
        errors = 0
        for sample in range(4, 8) if array != "image" else (slice(None),):
            try:
                read = reader.read(array, sample)
            except DamagedStoreError as error:
                errors += 1
                assert f"g.zarr/{array}" in str(error) and "build again" in str(error)
                assert "\n" not in str(error)
            else:
                assert np.array_equal(read, data[array][sample])
        assert errors >= 1
        raised += errors
    assert raised


@pytest.mark.parametrize("damage", ["missing", "empty", "short"])
def test_a_missing_or_cut_shard_is_an_error(tmp_path, damage):
    output = built(tmp_path / "out")
    path = Path(str(output.path)) / "g.zarr/hr/c/0/0/0/0"
    whole = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(whole[: len(whole) // 2] if damage == "short" else b"")
    reader = GroupReader(output.path / "g.zarr", "test.pictures", 1)
    with pytest.raises(DamagedStoreError, match="hr"):
        reader.read("hr", 1)
    assert np.array_equal(reader.read("hr", 5), values()["hr"][5])


def test_a_store_of_another_schema_is_refused(tmp_path):
    output = built(tmp_path / "out")
    for name, version in (("test.pictures", 2), ("test.other", 1)):
        with pytest.raises(SchemaError, match="build it again"):
            GroupReader(output.path / "g.zarr", name, version)
    with pytest.raises(DamagedStoreError, match="no Zarr group"):
        GroupReader(output.path / "h.zarr", "test.pictures", 1)
    reader = GroupReader(output.path / "g.zarr", "test.pictures", 1)
    with pytest.raises(DamagedStoreError, match="no array lr"):
        reader.read("lr", 0)


def test_threads_share_a_reader(tmp_path):
    reader = GroupReader(built(tmp_path / "out").path / "g.zarr", "test.pictures", 1)
    data, wrong = values(), []

    def work(seed: int) -> None:
        for i in np.random.default_rng(seed).integers(0, COUNT, 30):
            if not np.array_equal(reader.read("hr", i), data["hr"][i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_reader_goes_to_other_processes(tmp_path):
    reader = GroupReader(built(tmp_path / "out").path / "g.zarr", "test.pictures", 1)
    expected = reader.read("hr", 5)
    assert np.array_equal(pickle.loads(pickle.dumps(reader)).read("hr", 5), expected)
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(send, reader.read("hr", 5).tobytes())
        os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as pipe:
        assert pipe.read() == expected.tobytes()
    assert os.waitpid(child, 0)[1] == 0


def test_metadata_is_read_once(tmp_path, monkeypatch):
    reader = GroupReader(built(tmp_path / "out").path / "g.zarr", "test.pictures", 1)
    reader.read("hr", slice(0, 1))
    asked = []
    get = type(reader_store(reader.path)).get

    async def watched(store, key, *args, **kwargs):
        asked.append(key)
        return await get(store, key, *args, **kwargs)

    monkeypatch.setattr(type(reader_store(reader.path)), "get", watched)
    reader.read("hr", slice(5, 6))
    assert asked and not [key for key in asked if key.endswith("zarr.json")]


def test_a_remote_store_is_written_here_and_read_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = OutputFolder(UPath("memory://test-shards/out"))
    write_shards(writer(folder))
    output = folder.commit({"metadata": {}})
    reader = GroupReader(output.path / "g.zarr", "test.pictures", 1)
    data = values()
    assert np.array_equal(reader.read("hr", 9), data["hr"][9])
    assert np.array_equal(reader.read("sr", 3, 1), data["sr"][3, 1])
    (output.path / "g.zarr/hr/c/0/0/0/0").unlink()
    with pytest.raises(DamagedStoreError, match="missing"):
        reader.read("hr", 0)
    assert contents(built(tmp_path / "here")).keys() == output.marker["files"].keys()


def test_the_hashing_store_enters_every_write_and_forgets_what_is_deleted(tmp_path):
    folder = OutputFolder(UPath(tmp_path / "out"))
    store = HashingStore(folder, "x.zarr")
    group = zarr.create_group(store, attributes={"a": 1})
    group.create_array("one", data=np.arange(4, dtype=np.int32))
    group.create_array("two", data=np.arange(4, dtype=np.int32))
    assert store.finished("one/c/0") and not folder.files["x.zarr/zarr.json"]["content"]
    del group["one"]
    left = {"x.zarr/zarr.json", "x.zarr/two/zarr.json", "x.zarr/two/c/0"}
    assert set(folder.files) == left
    assert {
        p.relative_to(folder.path).as_posix()
        for p in folder.path.glob("x.zarr/**/*")
        if p.is_file()
    } == left
    with pytest.raises(ValueError, match="read-only"):
        zarr.create_array(reader_store(UPath(folder.path / "x.zarr")), shape=(1,), dtype="int8")


def test_a_batch_is_read_in_the_order_asked_into_memory_of_the_caller(tmp_path):
    reader, data = GroupReader(built(tmp_path / "out").path / "g.zarr"), values()
    wanted, variants = np.array([9, 0, 4, 9]), np.array([1, 0, 0, 0])
    assert np.array_equal(reader.read_batch("hr", wanted), data["hr"][wanted])
    out = np.empty((4, 3, SIDE, SIDE), np.int16)
    assert reader.read_batch("sr", wanted, variants, out=out) is out
    assert np.array_equal(out, data["sr"][wanted, variants])
    assert np.array_equal(reader.read_batch("sr", wanted), data["sr"][wanted])  # several chunks
    assert reader.read_batch("hr", np.array([], np.int64)).shape == (0, SIDE, SIDE, 3)
    with pytest.raises(IndexError, match="sr: index 2 on axis 1"):
        reader.read_batch("sr", wanted, variants + 1)


def test_damage_is_named_by_store_array_shard_and_sample(tmp_path):
    output = built(tmp_path / "out")
    path = Path(str(output.path)) / "g.zarr/sr/c/1/0/0/0/0"
    whole = bytearray(path.read_bytes())
    whole[0] ^= 1  # of the first chunk of shard 1: sample 4, variant 0
    path.write_bytes(whole)
    reader = GroupReader(output.path / "g.zarr")
    with pytest.raises(
        DamagedStoreError, match=r"g\.zarr/sr: shard 1, sample 4, part 0 is damaged"
    ):
        reader.read_batch("sr", [5, 4], [0, 0])
    assert np.array_equal(reader.read("sr", 4, 1), values()["sr"][4, 1])


def test_a_shard_that_was_made_again_is_read_with_its_new_index(tmp_path):
    output = built(tmp_path / "out")
    reader = GroupReader(output.path / "g.zarr")
    reader.read("hr", 4)
    other = OutputFolder(UPath(tmp_path / "other"))
    shards, data = writer(other), values()
    data["hr"][4:8] = 7  # packs to other lengths
    shards.write(1, **{name: array[4:8] for name, array in data.items()})
    key = "g.zarr/hr/c/1/0/0/0"
    (other.path / key).replace(Path(str(output.path)) / key)
    assert (reader.read("hr", 5) == 7).all()


def test_a_remote_batch_takes_one_request_a_stretch(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = OutputFolder(UPath("memory://test-batches/out"))
    write_shards(writer(folder))
    reader = GroupReader(folder.commit({"metadata": {}}).path / "g.zarr")
    fs, asked = reader.path.fs, []
    cat_ranges = type(fs).cat_ranges

    def counted(self, paths, *args, **kwargs):
        asked.append(len(paths))
        return cat_ranges(self, paths, *args, **kwargs)

    monkeypatch.setattr(type(fs), "cat_ranges", counted)
    wanted = [8, 1, 0, 3, 2]
    assert np.array_equal(reader.read_batch("hr", wanted), values()["hr"][wanted])
    assert asked == [2]  # two shards


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_array_survives_and_zarr_reads_the_same(data):
    count, samples = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 5))
    height, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    predictor = data.draw(st.sampled_from(["left", "left_above"]))
    green = data.draw(st.booleans())
    hr = data.draw(hnp.arrays(np.uint8, (count, height, width, 3)))
    picture = PictureDelta(subtract_green=green, predictor=predictor)
    spec = ArraySpec(
        hr.shape[1:], hr.shape[1:], "uint8", ("n", "y", "x", "c"), (picture,), (ZstdCodec(),)
    )
    with tempfile.TemporaryDirectory() as where:
        folder = OutputFolder(UPath(where) / "out")
        shards = ShardWriter(folder, "g.zarr", count, {"hr": spec}, samples, {})
        for i, part in enumerate(shards.shards):
            shards.write(i, hr=hr[part.start : part.stop])
        path = folder.commit({}).path / "g.zarr"
        assert np.array_equal(zarr.open_group(str(path), mode="r")["hr"][:], hr)
        order = data.draw(st.permutations(range(count)))
        assert np.array_equal(GroupReader(path).read_batch("hr", order), hr[order])
