"""What the loop does with a batch as stored, and how it clocks the waiting for one."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sr_models.training.memory import BatchMemory
from sr_models.training.stored import dequantised
from sr_models.training.waiting import DataWait, waiting_line


def test_stored_integers_become_what_they_stand_for() -> None:
    draw = np.random.default_rng(1)
    lr = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    sr = draw.integers(-32768, 32768, (2, 3, 4, 4)).astype(np.int16)
    features = draw.integers(-127, 128, (2, 5, 4, 4)).astype(np.int8)
    scale = draw.random((2, 5), np.float32)
    plain = draw.random((2, 3, 4, 4), np.float32) - 1
    step = np.full((2, 1), 1 / 2040, np.float32)
    batch = {"lr": lr, "sr/a": sr, "scale/sr/a": step, "features/a": features}
    batch |= {"scale/features/a": scale, "sr/b": plain}
    found = dequantised({name: torch.from_numpy(values) for name, values in batch.items()})
    wanted = {
        "lr": lr.astype(np.float32) / np.float32(255),
        "sr/a": sr.astype(np.float32) * np.float32(1 / 2040),
        "features/a": features.astype(np.float32) * scale[..., None, None],
        "sr/b": plain,
    }
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert found[name].dtype == torch.float32
        assert np.array_equal(found[name].numpy(), values)


def test_what_was_stored_stays_as_it_was() -> None:
    exact, scale = torch.ones(1, 2, 3, 3), torch.full((1, 2), 0.5)
    dequantised({"sr/a": exact, "scale/sr/a": scale})
    assert torch.equal(exact, torch.ones(1, 2, 3, 3))


@pytest.mark.parametrize(
    "pinned",
    [
        False,
        pytest.param(
            True,
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
        ),
    ],
)
def test_batches_are_not_copied_to_become_tensors(pinned: bool) -> None:
    memory = BatchMemory(pinned)
    given = memory.empty((3, 4), np.dtype("int16"))
    given[:] = 7
    own = np.ones(2, np.float32)
    found = memory.tensors({"given": given, "own": own})
    assert found["given"].is_pinned() == pinned and found["given"].dtype == torch.int16
    assert found["given"].data_ptr() == given.ctypes.data
    assert found["own"].data_ptr() == own.ctypes.data
    assert (found["given"] == 7).all()


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=6))
def test_shares_are_of_steps_alone(steps: list[tuple[int, int]]) -> None:
    now = 0.0

    def batches() -> object:
        nonlocal now
        for seconds, _ in steps:
            now += seconds
            yield seconds

    wait = DataWait(lambda: now)
    upcoming = batches()
    assert wait.share == wait.lap() == 0
    for seconds, work in steps:
        with wait.step():
            assert wait.take(upcoming) == seconds  # type: ignore[arg-type]
            now += work
        now += 100  # a validation
        assert abs(wait.lap() - seconds / (seconds + work)) < 1e-9
    waited = sum(seconds for seconds, _ in steps)
    assert abs(wait.share - waited / (waited + sum(work for _, work in steps))) < 1e-9


def test_a_share_above_the_limit_says_what_it_means() -> None:
    assert waiting_line(0.03) == "waited for data 3.0 %"
    assert "does not keep up" in waiting_line(0.031)
