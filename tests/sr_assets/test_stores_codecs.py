"""The picture filter loses nothing, whatever the pixels, and works wherever Zarr reads."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from sr_assets.stores.codecs import PictureDelta

SIDES = st.integers(1, 40)


def pictures(channels: int = 3):
    shape = st.tuples(st.integers(1, 3), SIDES, SIDES, st.just(channels))
    return shape.flatmap(lambda s: hnp.arrays(np.uint8, s))


def fixed_point():
    shape = st.tuples(st.integers(1, 2), st.integers(1, 4), SIDES, SIDES)
    return shape.flatmap(lambda s: hnp.arrays(np.int16, s))


@settings(max_examples=60, deadline=None)
@given(pictures(), st.booleans(), st.sampled_from(["left", "left_above"]))
def test_pictures_come_back_exactly(pixels, subtract_green, predictor):
    for channel_axis, array in ((-1, pixels), (-3, np.moveaxis(pixels, -1, -3))):
        before = array.copy()
        codec = PictureDelta(
            subtract_green=subtract_green, channel_axis=channel_axis, predictor=predictor
        )
        encoded = codec.apply(array)
        assert encoded.dtype == np.uint8 and encoded.shape == (len(pixels), 3, *pixels.shape[1:3])
        assert np.array_equal(codec.undo(encoded), array)
        assert np.array_equal(array, before)  # the caller's pixels are not touched


@settings(max_examples=60, deadline=None)
@given(fixed_point(), st.sampled_from(["left", "above"]))
def test_fixed_point_comes_back_exactly(values, predictor):
    for channel_axis, array in ((-3, values), (-1, np.moveaxis(values, -3, -1))):
        codec = PictureDelta(zigzag=True, channel_axis=channel_axis, predictor=predictor)
        encoded = codec.apply(array)
        assert encoded.dtype == np.uint16
        decoded = codec.undo(encoded)
        assert decoded.dtype == np.int16 and np.array_equal(decoded, array)


def test_the_prediction_is_the_left_neighbour():
    pixels = np.array([[[[10, 20, 30], [12, 20, 29]]]], np.uint8)
    encoded = PictureDelta(subtract_green=True).apply(pixels)
    # R - G = -10, -8; G = 20, 20; B - G = 10, 9; then differences along the row
    assert encoded[0, :, 0].tolist() == [[246, 2], [20, 0], [10, 255]]
    values = np.array([[[[5, 3, 3, 4]]]], np.int16)
    encoded = PictureDelta(zigzag=True, channel_axis=-3).apply(values)
    assert encoded.ravel().tolist() == [10, 3, 0, 2]  # +5, -2, 0, +1


def test_the_prediction_is_the_pixel_above():
    values = np.array([[[[5, 3, 3], [4, 3, 5]]]], np.int16)
    codec = PictureDelta(zigzag=True, channel_axis=-3, predictor="above")
    # +5, -2, 0 along the first row, then -1, 0, +2 downwards
    assert codec.apply(values).ravel().tolist() == [10, 3, 0, 1, 0, 4]
    pixels = np.array([[[[10, 10, 10], [12, 12, 12]], [[11, 11, 11], [11, 11, 11]]]], np.uint8)
    encoded = PictureDelta(predictor="left_above").apply(pixels)
    assert encoded[0, 1].tolist() == [[10, 2], [1, 0]]


@pytest.mark.parametrize(("zigzag", "predictor"), [(True, "left_above"), (False, "above")])
def test_a_predictor_of_the_other_type_is_refused(zigzag, predictor):
    with pytest.raises(ValueError, match=f"predictor is '{predictor}'"):
        PictureDelta(zigzag=zigzag, predictor=predictor)


@settings(max_examples=20, deadline=None)
@given(pictures(), st.integers(0, 255))
def test_inside_a_shard_any_part_reads_back(pixels, fill):
    count, height, width, _ = pixels.shape
    array = zarr.create_array(
        MemoryStore(),
        shape=pixels.shape,
        dtype="uint8",
        chunks=(1, height, width, 3),
        shards=(2, height, width, 3),
        filters=[PictureDelta(subtract_green=True)],
        compressors=[ZstdCodec(level=1), Crc32cCodec()],
        fill_value=fill,
    )
    array[:] = pixels
    assert np.array_equal(array[:], pixels)
    assert np.array_equal(array[count - 1, : height // 2], pixels[-1, : height // 2])
    array[0, 0] = 7  # a partial write reads, changes and writes the chunk again
    pixels[0, 0] = 7
    assert np.array_equal(array[:], pixels)


@settings(max_examples=20, deadline=None)
@given(fixed_point(), st.sampled_from(["left", "above"]))
def test_inside_a_shard_fixed_point_reads_back(values, predictor):
    array = zarr.create_array(
        MemoryStore(),
        shape=values.shape,
        dtype="int16",
        chunks=(1, *values.shape[1:]),
        shards=(2, *values.shape[1:]),
        filters=[PictureDelta(zigzag=True, channel_axis=-3, predictor=predictor)],
        compressors=[
            BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle", typesize=2),
            Crc32cCodec(),
        ],
        fill_value=0,
    )
    array[:] = values
    assert np.array_equal(array[:], values)


def test_a_program_that_never_heard_of_us_reads_our_arrays(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 9, 3), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        array = zarr.create_array(
            str(tmp_path / "a.zarr"),
            shape=pixels.shape,
            dtype="uint8",
            chunks=(1, 8, 9, 3),
            filters=[PictureDelta(subtract_green=True)],
        )
        array[:] = pixels
    program = (
        "import sys, zarr; a = zarr.open_array(sys.argv[1], mode='r'); "
        "sys.stdout.buffer.write(a[:].tobytes())"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(tmp_path / "a.zarr")],
        check=True,
        capture_output=True,
        cwd=tmp_path,
    )
    assert run.stdout == pixels.tobytes()


@pytest.mark.parametrize(
    ("codec", "dtype", "shape"),
    [
        (PictureDelta(subtract_green=True), "uint8", (2, 8, 8, 4)),
        (PictureDelta(subtract_green=True, zigzag=True), "int16", (2, 8, 8, 3)),
        (PictureDelta(), "float32", (2, 8, 8, 3)),
        (PictureDelta(zigzag=True), "uint8", (2, 8, 8, 3)),
        (PictureDelta(), "uint8", (8, 8)),
    ],
)
def test_an_array_that_it_cannot_filter_is_refused(codec, dtype, shape):
    with pytest.raises(ValueError, match=r"srd\.picture_delta"):
        zarr.create_array(MemoryStore(), shape=shape, dtype=dtype, chunks=shape, filters=[codec])


def test_a_channel_axis_that_is_neither_layout_is_refused():
    with pytest.raises(ValueError, match="channel_axis is 0"):
        PictureDelta(channel_axis=0)
