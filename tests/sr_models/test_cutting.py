"""Crops are those of numpy's slices and rot90, for every type, layout, size and orientation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sr_models.cutting import cut_into


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_cut_is_what_numpy_cuts(data):
    height, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    dtype = data.draw(st.sampled_from(["uint8", "int8", "int16", "float32"]))
    interleaved = data.draw(st.booleans())
    shape = (height, width, 3) if interleaved else (3, height, width)
    picture = data.draw(hnp.arrays(dtype, shape))
    planes = picture.transpose(2, 0, 1) if interleaved else picture
    side = data.draw(st.integers(1, min(height, width)))
    y, x = data.draw(st.integers(0, height - side)), data.draw(st.integers(0, width - side))
    turns, mirrored = data.draw(st.integers(0, 3)), data.draw(st.booleans())
    out = np.empty((3, side, side), dtype)
    cut_into(planes, y, x, turns, mirrored, out)
    expected = np.rot90(planes[:, y : y + side, x : x + side], turns, (-2, -1))
    np.testing.assert_array_equal(out, expected[..., ::-1] if mirrored else expected)


@pytest.mark.parametrize(("y", "x"), [(-1, 0), (0, -1), (3, 0), (0, 3)])
def test_a_square_outside_is_refused(y, x):
    with pytest.raises(ValueError, match="can be cut at"):
        cut_into(np.zeros((3, 6, 6), np.uint8), y, x, 0, False, np.empty((3, 4, 4), np.uint8))


def test_another_type_is_refused():
    with pytest.raises(ValueError, match="float32"):
        cut_into(np.zeros((3, 6, 6), np.uint8), 0, 0, 1, False, np.empty((3, 4, 4), np.float32))
