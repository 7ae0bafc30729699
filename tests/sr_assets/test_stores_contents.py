"""Patches, pairs and expert caches: what goes in comes out, as exactly as each store promises."""

import json

import numpy as np
import pyarrow as pa
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from upath import UPath

from sr_assets.output_folder import OutputFolder
from sr_assets.storage import Output
from sr_assets.stores.expert_cache import (
    CacheReader,
    CacheWriter,
)
from sr_assets.stores.fixed_point import (
    SR_STEP,
    dequantise,
    dequantise_features,
    quantise,
    quantise_features,
)
from sr_assets.stores.pairs import PairReader, PairWriter
from sr_assets.stores.patches import PatchPositions, PatchReader, PatchWriter
from sr_assets.stores.shards import DamagedStoreError
from sr_assets.stores.whole_images import image_files, put_files, read_image

random = np.random.default_rng(3)


def positions(count: int) -> PatchPositions:
    return PatchPositions(
        image=np.arange(count) // 3,
        y=np.arange(count) * 32,
        x=np.arange(count)[::-1].copy(),
        split=np.arange(count) % 2,
    )


def write_patches(folder: OutputFolder, hr: np.ndarray) -> PatchWriter:
    images = ["a/one.png", "zwei ü.jpg"]
    writer = PatchWriter(folder, positions(len(hr)), hr.shape[1], images, {"code": "c1"})
    for i, shard in enumerate(writer.shards):
        writer.write(i, hr[shard.start : shard.stop])
    return writer


def test_patches_come_back_exactly_with_their_place(tmp_path):
    hr = random.integers(0, 256, (5, 32, 32, 3), np.uint8)
    folder = OutputFolder(UPath(tmp_path / "out"))
    writer = write_patches(folder, hr)
    assert all(writer.finished(i) for i in range(len(writer.shards)))
    output = folder.commit({"metadata": {}})
    reader = PatchReader(output)
    assert len(reader) == 5 and reader.size == 32
    assert reader.images == ["a/one.png", "zwei ü.jpg"]
    assert all(np.array_equal(reader.hr(i), hr[i]) for i in range(5))
    expected = positions(5)
    for name, dtype in (("image", "int32"), ("y", "int32"), ("x", "int32"), ("split", "uint8")):
        column = getattr(reader, name)
        assert column.dtype == dtype and np.array_equal(column, getattr(expected, name))
    group = zarr.open_group(str(output.path / "patches.zarr"), mode="r")
    assert group["hr"].dtype == np.uint8 and np.array_equal(group["hr"][:], hr)
    assert group.attrs["provenance"] == {"code": "c1"}


@pytest.mark.parametrize(("size", "per_shard"), [(256, 512), (128, 2048), (64, 4096), (1024, 32)])
def test_a_shard_of_patches_is_bounded(tmp_path, size, per_shard):
    folder = OutputFolder(UPath(tmp_path / "out"))
    writer = PatchWriter(folder, positions(10_000), size, [], {})
    assert len(writer.shards[0]) == per_shard
    assert len(writer.shards[0]) * size * size * 3 <= 96 << 20


def test_a_million_patches_are_few_files_and_open_without_reading_them(tmp_path):
    count = 1_000_000
    zeros = np.zeros(count, np.int32)
    folder = OutputFolder(UPath(tmp_path / "out"))
    place = PatchPositions(zeros, zeros, zeros, zeros.astype(np.uint8))
    writer = PatchWriter(folder, place, 256, ["a.png"], {})
    assert len(writer.shards) + len(folder.files) < 2000
    reader = PatchReader(folder.commit({"metadata": {}}))
    assert len(reader) == count and not {"image", "y", "x", "split"} & set(vars(reader))
    assert reader.split.shape == (count,)


def test_a_gradient_packs_well(tmp_path):
    ramp = np.arange(96, dtype=np.uint8)
    hr = np.broadcast_to((ramp[:, None] + ramp)[None, :, :, None], (4, 96, 96, 3)).copy()
    folder = OutputFolder(UPath(tmp_path / "out"))
    write_patches(folder, hr)
    assert folder.files["patches.zarr/hr/c/0/0/0/0"]["size"] < hr.nbytes / 40


def test_pairs_come_back_exactly_with_their_table(tmp_path):
    lr = random.integers(0, 256, (5, 2, 8, 8, 3), np.uint8)
    table = pa.table({"index": pa.array([0, 1], pa.int32()), "degradation": ["bicubic", "bicubic"]})

    def build(name: str) -> Output:
        folder = OutputFolder(UPath(tmp_path / name))
        writer = PairWriter(folder, 5, 2, 8, {"seed": 0})
        for i, shard in enumerate(writer.shards):
            writer.write(i, lr[shard.start : shard.stop])
        writer.write_params(table.replace_schema_metadata({"written": name}))
        return folder.commit({"metadata": {}})

    output = build("one")
    reader = PairReader(output)
    assert (len(reader), reader.variants, reader.size) == (5, 2, 8)
    for i in range(5):
        for k in range(2):
            assert np.array_equal(reader.lr(i, k), lr[i, k])
    with pytest.raises(IndexError, match="axis 1"):
        reader.lr(0, 2)
    assert reader.params().equals(table)
    assert build("two").data_version == output.data_version


def finite(shape, limit: float):
    return hnp.arrays(np.float32, shape, elements=st.floats(-limit, limit, width=32))


@settings(max_examples=100, deadline=None)
@given(finite((2, 3, 5, 7), 16))
def test_fixed_point_errs_by_half_a_step_at_most(sr):
    stored = quantise(sr)
    assert stored.dtype == np.int16
    error = np.abs(dequantise(stored).astype(np.float64) - sr).max()
    assert error <= SR_STEP / 2 + 2e-6  # single precision at 16 is 1e-6 wide
    assert np.array_equal(quantise(dequantise(stored)), stored)


def test_every_stored_value_survives_a_second_round_and_far_values_saturate():
    everything = np.arange(-32767, 32768).astype(np.int16)
    assert np.array_equal(quantise(dequantise(everything)), everything)
    far = quantise(np.array([1e30, -1e30, 20, -20, 1.5, -0.25], np.float32))
    assert far.tolist() == [32767, -32767, 32767, -32767, 3060, -510]


@settings(max_examples=100, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 6), st.integers(1, 6)).flatmap(
        lambda shape: hnp.arrays(
            np.float32, shape, elements=st.floats(-(2.0**100), 2.0**100, width=32)
        )
    )
)
def test_features_err_by_half_their_own_step(features):
    stored, scale = quantise_features(features)
    assert stored.dtype == np.int8 and scale.dtype == np.float32
    assert scale.shape == features.shape[:2]
    error = np.abs(dequantise_features(stored, scale).astype(np.float64) - features)
    largest = np.abs(features).max(axis=(2, 3), keepdims=True)
    assert (error <= largest * (0.5 / 127) * 1.0001 + 1e-42).all()
    assert (stored[features == 0] == 0).all()


def cache_values(count: int, variants: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(5)
    sr = draw.normal(0.5, 0.5, (count, variants, 3, size, size)).astype(np.float32)
    features = draw.normal(0, 3, (count, variants, 4, 6, 6)).astype(np.float32)
    features[0, 0, 2] = 0
    return sr, features


def build_cache(folder: OutputFolder, sr: np.ndarray, features: np.ndarray | None) -> CacheWriter:
    shape = None if features is None else (features.shape[2], features.shape[3])
    writer = CacheWriter(folder, len(sr), sr.shape[1], sr.shape[-1], shape, {"expert": "hat"})
    for i, shard in enumerate(writer.shards):
        if not writer.finished(i):
            part = slice(shard.start, shard.stop)
            writer.write(i, sr[part], None if features is None else features[part])
    return writer


def test_a_cache_reads_back_unclamped_within_its_step(tmp_path):
    sr, features = cache_values(6, 2, 24)
    assert sr.min() < 0 and sr.max() > 1
    folder = OutputFolder(UPath(tmp_path / "out"))
    writer = build_cache(folder, sr, features)
    error = writer.error()
    output = folder.commit({"metadata": error})
    reader = CacheReader(output)
    assert (len(reader), reader.variants, reader.size) == (6, 2, 24)
    assert reader.feature_shape == (4, 6, 6) and reader.attributes["expert"] == "hat"
    read = reader.sr_batch([5, 0, 3], [1, 0, 1])
    assert read.dtype == np.float32
    assert np.abs(read - sr[[5, 0, 3], [1, 0, 1]]).max() <= SR_STEP / 2 + 1e-6
    assert np.array_equal(reader.sr_stored(4, 1), quantise(sr[4, 1]))
    assert np.array_equal(reader.sr(4, 1), dequantise(quantise(sr[4, 1])))
    assert np.array_equal(reader.features_batch([2], [1])[0], reader.features(2, 1))
    assert (reader.features(0, 0)[2] == 0).all()
    everything = dequantise(quantise(sr))
    assert error["sr_error_max"] == pytest.approx(np.abs(everything - sr).max())
    assert error["sr_error_rms"] == pytest.approx(np.sqrt(np.square(everything - sr).mean()), 1e-3)
    assert error["features_snr_db"] > 35
    group = zarr.open_group(str(output.path / "cache.zarr"), mode="r")
    assert group["sr"].dtype == np.int16 and np.array_equal(group["sr"][:], quantise(sr))


def test_a_cache_without_features_says_so(tmp_path):
    sr, features = cache_values(3, 1, 16)
    folder = OutputFolder(UPath(tmp_path / "out"))
    writer = build_cache(folder, sr, None)
    assert set(writer.error()) == {"sr_error_max", "sr_error_rms"}
    with pytest.raises(ValueError, match="no features"):
        writer.write(0, sr, features)
    reader = CacheReader(folder.commit({"metadata": {}}))
    assert reader.feature_shape is None
    with pytest.raises(KeyError, match="no features"):
        reader.features(0, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["sr", "features"])
def test_a_value_that_is_not_finite_names_its_sample(tmp_path, bad, where):
    count = 300  # two shards
    sr = np.zeros((count, 2, 3, 8, 8), np.float32)
    features = np.zeros((count, 2, 1, 2, 2), np.float32)
    folder = OutputFolder(UPath(tmp_path / "out"))
    writer = CacheWriter(folder, count, 2, 8, (1, 2), {})
    shard = writer.shards[1]
    {"sr": sr, "features": features}[where][shard.start + 7, 1, 0, 1, 1] = bad
    part = slice(shard.start, shard.stop)
    with pytest.raises(ValueError, match=f"{where} of sample {shard.start + 7}, variant 1 "):
        writer.write(1, sr[part], features[part])
    assert not writer.finished(1)


def test_the_error_survives_a_restart(tmp_path, monkeypatch):
    monkeypatch.setattr("sr_assets.stores.expert_cache._SHARD_SAMPLES", 2)
    sr, features = cache_values(6, 1, 16)
    undisturbed = OutputFolder(UPath(tmp_path / "undisturbed"))
    expected = build_cache(undisturbed, sr, features).error()
    folder = OutputFolder(UPath(tmp_path / "out"))
    writer = CacheWriter(folder, 6, 1, 16, (4, 6), {"expert": "hat"})
    writer.write(2, sr[4:], features[4:])
    writer.write(0, sr[:2], features[:2])
    folder = OutputFolder(folder.final)
    assert build_cache(folder, sr, features).error() == expected
    versions = {f.commit({"metadata": {}}).data_version for f in (folder, undisturbed)}
    assert len(versions) == 1


@pytest.mark.parametrize(("size", "per_shard"), [(256, 32), (128, 128), (96, 227), (64, 256)])
def test_a_kill_costs_little_expert_time(tmp_path, size, per_shard):
    folder = OutputFolder(UPath(tmp_path / "out"))
    writer = CacheWriter(folder, 1000, 1, size, None, {})
    assert len(writer.shards[0]) == per_shard


@pytest.mark.parametrize("shape", [(3, 5, 7), (3, 600, 530), (3, 512, 1)])
def test_a_whole_image_reads_back(tmp_path, shape):
    sr = random.normal(0.5, 0.5, shape).astype(np.float32)
    versions = []
    for name in ("one", "two"):
        folder = OutputFolder(UPath(tmp_path / name))
        put_files(folder, image_files("set5/baby.png", sr))
        put_files(folder, image_files("butterfly", sr[:, :4, :1]))
        if name == "two":
            put_files(folder, image_files("set5/baby.png", sr[:, ::-1]))  # another try
            put_files(folder, image_files("set5/baby.png", sr))
        output = folder.commit({"metadata": {}})
        versions.append(output.data_version)
        assert np.array_equal(read_image(output, "set5/baby.png"), dequantise(quantise(sr)))
        assert read_image(output, "butterfly").shape == (3, 4, 1)
    assert versions[0] == versions[1]
    with pytest.raises(DamagedStoreError, match="no array bird"):
        read_image(output, "bird")


def test_an_image_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="image baby"):
        image_files("baby", np.full((3, 4, 4), np.nan, np.float32))


def test_array_metadata_is_valid_zarr_for_other_programs(tmp_path):
    folder = OutputFolder(UPath(tmp_path / "out"))
    write_patches(folder, np.zeros((2, 16, 16, 3), np.uint8))
    metadata = json.loads((folder.path / "patches.zarr/hr/zarr.json").read_text())
    sharding = metadata["codecs"][0]["configuration"]
    assert [codec["name"] for codec in sharding["codecs"]] == [
        "srd.picture_delta",
        "bytes",
        "zstd",
        "crc32c",
    ]
    assert sharding["index_codecs"][-1]["name"] == "crc32c"
    assert metadata["dimension_names"] == ["patch", "y", "x", "channel"]
