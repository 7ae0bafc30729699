"""Schedule, averaged weights, prefetching, checkpoint files and settings, each by itself."""

from __future__ import annotations

import threading
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

from sr_assets.recipe.strict import OUTSIDE_LINEAGE
from sr_assets.recipe.training import Train
from sr_models.training import checkpoints
from sr_models.training.determinism import seeded
from sr_models.training.ema import Ema
from sr_models.training.optimizers import make_optimizer
from sr_models.training.prefetch import prefetched
from sr_models.training.schedule import learning_rate
from sr_models.training.settings import WITHOUT_EFFECT, Optimizer, TrainSettings, differences
from sr_models.training.stages import stage_at


@given(st.integers(2, 400), st.integers(0, 50), st.floats(1e-6, 1.0), st.floats(0, 1))
def test_rate_rises_to_the_peak_and_falls_to_the_floor(
    steps: int, warmup: int, peak: float, share: float
) -> None:
    settings = TrainSettings(
        steps=steps + warmup, warmup=warmup, learning_rate=peak, min_learning_rate=peak * share
    )
    rates = [learning_rate(step, settings) for step in range(settings.steps)]
    # Rounding: at the peak the cosine's sum may fall one unit in the last place short.
    assert rates[: warmup + 1] == pytest.approx(sorted(rates[: warmup + 1]), rel=1e-12)
    assert rates[warmup:] == pytest.approx(sorted(rates[warmup:], reverse=True), rel=1e-12)
    assert rates[warmup] == pytest.approx(peak) and max(rates) <= peak * (1 + 1e-12)
    assert rates[-1] == pytest.approx(peak * share, abs=1e-12)
    if warmup:
        assert rates[0] == pytest.approx(peak / warmup)


@settings_of_hypothesis(deadline=None)  # torch's schedulers take a second to import
@given(
    st.integers(1, 20), st.integers(1, 3), st.integers(0, 9), st.floats(1e-6, 1), st.floats(0, 1)
)
def test_restarts_are_those_of_torch(
    first: int, factor: int, warmup: int, peak: float, share: float
) -> None:
    settings = TrainSettings(
        steps=200, warmup=warmup, schedule="cosine_restarts", restart_first=first,
        restart_factor=factor, learning_rate=peak, min_learning_rate=peak * share,
    )  # fmt: skip
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak)
    theirs = CosineAnnealingWarmRestarts(optimizer, first, factor, eta_min=peak * share)
    for step in range(warmup, 200):
        expected = optimizer.param_groups[0]["lr"]
        assert learning_rate(step, settings) == pytest.approx(expected, rel=1e-9, abs=1e-15)
        optimizer.step()
        theirs.step()


def test_warmup_begins_where_it_is_told_and_a_constant_stays() -> None:
    settings = TrainSettings(
        steps=10, warmup=4, warmup_from=0.2, learning_rate=1.0, schedule="constant"
    )
    rates = [learning_rate(step, settings) for step in range(10)]
    assert rates == pytest.approx([0.4, 0.6, 0.8, *[1.0] * 7])


@given(st.lists(st.integers(1, 50), unique=True, max_size=5).map(sorted), st.integers(0, 60))
def test_stage_of_a_step(ends: list[int], step: int) -> None:
    stage = stage_at(step, ends)
    assert (stage == 0 or ends[stage - 1] <= step) and (stage == len(ends) or step < ends[stage])


def test_run_shorter_than_its_warmup_only_rises() -> None:
    settings = TrainSettings(steps=5, warmup=10, learning_rate=1.0)
    rates = [learning_rate(step, settings) for step in range(5)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


def test_settings_mirror_the_recipe() -> None:
    not_the_loops = {"loss", "stages", "augment", "epochs", "start_from", "tracker", "restarts"}
    recipe = {n: field for n, field in Train.model_fields.items() if n not in not_the_loops}
    ours = {f.name: f.default for f in fields(TrainSettings)}
    restarts = {f"restart_{name}": value for name, value in Train().restarts}
    defaults = {name: field.default for name, field in recipe.items()}
    assert ours == defaults | restarts | {"device": "auto"}
    outside = {n for n, f in recipe.items() if f.json_schema_extra == OUTSIDE_LINEAGE}
    assert outside | {"device"} == WITHOUT_EFFECT
    assert Train.model_fields["optimizer"].annotation == Optimizer


def test_settings_refuse_what_cannot_be_meant() -> None:
    with pytest.raises(ValueError, match="min_learning_rate 1 is above"):
        TrainSettings(learning_rate=0.1, min_learning_rate=1)
    with pytest.raises(ValueError, match="validate_every is 0"):
        TrainSettings(validate_every=0)
    with pytest.raises(ValueError, match=r"ema is 1\.0"):
        TrainSettings(ema=1.0)
    with pytest.raises(ValueError, match="warmup_from 2 is above learning_rate 1"):
        TrainSettings(learning_rate=1, warmup_from=2)
    with pytest.raises(ValueError, match="schedule cosine with optimizer adan_schedule_free"):
        TrainSettings(optimizer="adan_schedule_free")


def test_differences_name_each_field() -> None:
    now = TrainSettings(seed=1)
    assert differences(now.identity(), replace(now, seed=2, log_every=9).identity()) == [
        "seed 1 -> 2"
    ]
    assert differences({"a": 1}, {"b": 2}) == ["a 1 -> None", "b None -> 2"]


def test_average_follows_the_formula() -> None:
    network = nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(1.0)
    ema = Ema(network, decay=0.5)
    expected = 1.0
    for t, value in enumerate([3.0, -2.0, 5.0, 4.0, 1.0, 8.0, 9.0, 2.0, 6.0]):
        network.weight.data.fill_(value)
        ema.update(network, t)
        decay = min(0.5, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * value
        assert float(ema.network.weight.detach()) == pytest.approx(expected, rel=1e-5)


def test_average_copies_buffers() -> None:
    network = nn.BatchNorm1d(2)
    network.register_buffer("mask", torch.tensor([float("-inf"), 0.0]))
    ema = Ema(network, decay=0.9)
    network.running_mean = torch.tensor([1.0, 2.0])
    network.num_batches_tracked = torch.tensor(7)
    ema.update(network, 0)
    assert ema.state()["running_mean"].tolist() == [1.0, 2.0]
    assert ema.state()["num_batches_tracked"] == 7
    assert ema.state()["mask"].tolist() == [float("-inf"), 0.0]


def test_average_does_not_touch_the_network() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    ema = Ema(network, decay=0.9)
    assert all(p.requires_grad for p in network.parameters())
    assert all(m.training for m in network.modules())
    assert ema.network[0].weight.data_ptr() != network[0].weight.data_ptr()


def test_optimiser_leaves_frozen_parameters_out() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    network[0].requires_grad_(False)
    optimizer = make_optimizer(network, TrainSettings())
    assert [len(group["params"]) for group in optimizer.param_groups] == [1]
    with pytest.raises(ValueError, match="no trainable parameter"):
        make_optimizer(network.requires_grad_(False), TrainSettings())


@given(st.integers(0, 5), st.integers(0, 30), st.integers(1, 4))
def test_prefetching_keeps_the_order(start: int, count: int, ahead: int) -> None:
    numbers = range(start, start + count)
    with prefetched(lambda i: i * i, numbers, ahead) as results:
        assert list(results) == [i * i for i in numbers]


def test_prefetching_raises_where_the_error_belongs() -> None:
    def make(i: int) -> int:
        if i == 2:
            raise KeyError("patch 2")
        return i

    with prefetched(make, range(5)) as results:
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(KeyError, match="patch 2"):
            next(results)


def test_without_a_thread_each_result_is_made_in_turn() -> None:
    made: list[tuple[int, str]] = []

    def make(i: int) -> int:
        assert not torch.is_grad_enabled()
        made.append((i, threading.current_thread().name))
        return i

    with prefetched(make, range(3), ahead=0) as results:
        assert made == []
        assert next(results) == 0 and torch.is_grad_enabled()
        assert made == [(0, threading.current_thread().name)]
        assert list(results) == [1, 2]


def test_prefetching_stops_when_it_is_left() -> None:
    made: list[int] = []
    before = set(threading.enumerate())
    with (
        pytest.raises(ZeroDivisionError),
        prefetched(lambda i: made.append(i), range(10**9), ahead=2) as results,
    ):
        next(results)
        raise ZeroDivisionError
    assert set(threading.enumerate()) <= before
    assert len(made) <= 4, "one taken, two waiting, one in hand"


@settings_of_hypothesis(deadline=None)  # every example waits for the disk
@given(data=st.data())
def test_every_flipped_bit_and_every_cut_is_found(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("checkpoints")
    path = checkpoints.save(folder, 1, {"step": 1, "weights": torch.arange(3)}, {})
    stored = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        stored[data.draw(st.integers(0, len(stored) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del stored[data.draw(st.integers(0, len(stored) - 1)) :]
    path.write_bytes(stored)
    with pytest.raises(checkpoints.DamagedCheckpointError, match=r"step-00000001\.pt"):
        checkpoints.load(path)
    assert checkpoints.newest(folder) is None


def test_checkpoint_opens_with_torch_alone(tmp_path: Path) -> None:
    path = checkpoints.save(
        tmp_path / "new", 12, {"weights": torch.ones(2), "best": [(1.5, 3)]}, {}
    )
    for content in (torch.load(path, weights_only=True), checkpoints.load(path)):
        assert content["weights"].tolist() == [1.0, 1.0]
        assert content["best"] == [(1.5, 3)]


def test_checkpoint_runs_no_code(tmp_path: Path) -> None:
    path = checkpoints.save(tmp_path, 1, {"task": nn.Linear(1, 1)}, {})
    with pytest.raises(Exception, match=r"[Ww]eights"):
        checkpoints.load(path)


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    checkpoints.write_atomically(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        checkpoints.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"


def test_weights_alone_carry_their_origin(tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3).T  # not contiguous, and tied
    checkpoints.save(tmp_path, 7, {}, {"a": weight, "b": weight}, pth=True)
    with safe_open(tmp_path / "step-00000007.safetensors", "pt") as file:
        assert file.metadata() == {"step": "7"}
        assert torch.equal(file.get_tensor("b"), weight)
    pth = torch.load(tmp_path / "step-00000007.pth", weights_only=True)
    assert torch.equal(pth["params"]["a"], weight)
    files = checkpoints.weights_files(tmp_path, [7, 8])
    assert [f.suffix for f in files] == [".safetensors", ".pth"]


def test_weights_without_a_state_are_no_checkpoint(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoints.save(tmp_path, step, {"step": step}, {})
    (tmp_path / "step-00000003.pt").unlink()  # killed between the two files
    (tmp_path / "step-00000004.pt.tmp").touch()
    found = checkpoints.newest(tmp_path)
    assert found is not None and found[1]["step"] == 2
    checkpoints.prune(tmp_path, 2, ())
    names = [f"step-{step:08d}.{kind}" for step in (1, 2) for kind in ("pt", "safetensors")]
    assert sorted(f.name for f in tmp_path.iterdir()) == names


def test_seeded_draws_the_same_and_restores() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    with seeded(9):
        first = torch.rand(2)
    with seeded(9):
        assert torch.equal(torch.rand(2), first)
    assert torch.equal(torch.rand(1), expected)
