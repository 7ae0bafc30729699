"""Shards on a real Ray of two workers: the same bytes, whatever becomes of a worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from ray_project import CACHE, EVALUATION, GOLD, Project, Run
from ray_shards import Told, open_calm, open_failing, open_gathering, open_mortal

from sr_assets.executor import OpenWorker, compute_shards
from sr_assets.graph import build_graph
from sr_assets.lineage.code_version import code_version
from sr_assets.lineage.stage import Ref, StageError

pytest.importorskip("ray", reason="the extra `ray` is not installed")

HERE = Path(__file__).parent
_STORE = 128 << 20
_ARRAYS = ("sr", "features", "feature_scale")
_PATIENCE = 600  # seconds until what is waited for counts as never coming
#: Of Ray, on machines that others use, too: its workers do not wait for all other processes, have
#: more than a minute to start, and are not ended where memory is short.
_UNHURRIED = {
    "RAY_worker_niceness": "0",
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_memory_monitor_refresh_ms": "0",
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """What decides the cores of a worker: of two cores, two workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of one machine with two cores."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 2, "object_store_memory": _STORE, "include_dashboard": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(HERE))  # workers import `ray_shards`
        for name, value in _UNHURRIED.items():
            patch.setenv(name, value)
        made = Cluster(initialize_head=True, head_node_args=node)
        yield made
    made.shutdown()


@pytest.fixture
def on_cluster(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    return cluster


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Everything made without Ray; tests make more copies."""
    made = Project(tmp_path_factory.mktemp("project"))
    made.make_sources()
    for ref in (CACHE, EVALUATION):
        made.output(ref)
    return made


def compute(run: Run, open_worker: OpenWorker[Told], shards: int = 6) -> dict[int, Told]:
    """What the workers say of each shard."""
    found: dict[int, Told] = {}
    units = dict.fromkeys(range(shards), 1)
    compute_shards(run.context, units, open_worker, found.__setitem__, run.advance, network=False)
    return found


def test_a_worker_lost_costs_its_shard_and_no_other(
    on_cluster: Any, project: Project, tmp_path: Path
) -> None:
    run = project.run(GOLD, "ray", "mortal")
    found = compute(run, partial(open_mortal, tmp_path))
    assert {shard: told[:2] for shard, told in found.items()} == {n: (n, "cpu") for n in range(6)}
    assert run.advanced == 6
    assert run.logged.count("a Ray worker was lost at shard 2: another one takes over") == 1
    assert {process for *_, process in found.values()} <= set(run.workers())


def test_a_shard_that_costs_worker_after_worker_is_named(
    on_cluster: Any, project: Project, tmp_path: Path
) -> None:
    with pytest.raises(StageError, match=r"3 Ray workers were lost at shard 2.*lower") as caught:
        compute(project.run(GOLD, "ray", "named"), partial(open_mortal, tmp_path / "nowhere"))
    assert "\n" not in str(caught.value)


def test_what_a_worker_says_is_said_as_without_ray(on_cluster: Any, project: Project) -> None:
    said = {}
    for executor in ("local", "ray"):
        with pytest.raises(StageError) as caught:
            compute(project.run(GOLD, executor, "failing"), open_failing)
        assert type(caught.value) is StageError
        said[executor] = str(caught.value)
    assert said["ray"] == said["local"] == "experts.e: shard 1 is not finite: set dtype to fp32"


def test_a_cancel_comes_through_as_without_ray(on_cluster: Any, project: Project) -> None:
    class CancelledError(Exception):
        pass

    def cancel(number: int, frame: Any) -> None:
        raise CancelledError

    def ask(run: Run) -> None:
        signal.raise_signal(signal.SIGTERM)

    run = project.run(GOLD, "ray", "cancelled")
    run.after = ask
    before = signal.signal(signal.SIGTERM, cancel)
    try:
        with pytest.raises(CancelledError):
            compute(run, partial(open_calm, 0.05), shards=40)
        assert signal.getsignal(signal.SIGTERM) is cancel
    finally:
        signal.signal(signal.SIGTERM, before)
    assert 0 < run.advanced < 40


def test_machines_that_come_get_workers_and_those_that_go_lose_them(
    on_cluster: Any, project: Project, tmp_path: Path
) -> None:
    nodes: list[Any] = []

    def change(run: Run) -> None:
        if run.advanced == 1:
            nodes.append(on_cluster.add_node(False, num_cpus=1, object_store_memory=_STORE))
        if len(run.workers()) == 3 and len(nodes) == 1:
            on_cluster.remove_node(nodes[0], allow_graceful=False)
            nodes.append(None)

    run = project.run(GOLD, "ray", "elastic")
    run.after = change
    found = compute(run, partial(open_gathering, tmp_path, 3), shards=40)
    assert sorted(found) == list(range(40))
    assert len(nodes) == 2, "the third worker never came"


def test_a_cache_has_the_same_bytes_when_a_worker_is_killed(
    on_cluster: Any, project: Project
) -> None:
    def kill(run: Run) -> None:
        if not killed:
            killed.append(run.workers()[0])
            os.kill(killed[0], signal.SIGKILL)

    killed: list[int] = []
    run = project.run(CACHE, "ray", "killed")
    run.after = kill
    output, local = run.make(), project.output(CACHE)
    assert output.data_version == local.data_version
    assert run.advanced == output.metadata["images"]
    rate = "images_per_second"
    assert {**output.metadata, rate: 0} == {**local.metadata, rate: 0}


@pytest.mark.parametrize("ref", [GOLD, EVALUATION], ids=str)
def test_gold_and_evaluations_have_the_same_bytes(
    on_cluster: Any, project: Project, ref: Ref
) -> None:
    run = project.run(ref, "ray", "ray")
    output, local = run.make(), project.output(ref)
    assert run.workers()
    assert output.data_version == local.data_version
    assert output.metadata == local.metadata


def test_a_killed_driver_leaves_no_worker_and_another_one_goes_on(project: Project) -> None:
    whole = project.output(CACHE)
    variables = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | _UNHURRIED
    process = subprocess.Popen(
        [sys.executable, str(HERE / "ray_project.py"), str(project.folder), "driver"],
        env=variables, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    said = process.communicate()[0]
    assert process.returncode == -signal.SIGKILL, said
    workers = [int(line.split()[2]) for line in said.splitlines() if "Ray worker" in line]
    assert workers
    _wait(lambda: not any(_runs(worker) for worker in workers))

    building = project.folder / "out" / CACHE.asset / "photos" / ".driver.partial"
    kept = {file: (building / file).stat().st_ino for file in _finished(building)}
    assert len(kept) == 2
    run = project.run(CACHE, "local", "driver")
    output = run.make()
    assert output.data_version == whole.data_version
    assert any(line.endswith("shards are finished") for line in run.logged)
    assert 0 < run.advanced < output.metadata["images"]
    assert {file: Path(str(output.path), file).stat().st_ino for file in kept} == kept


def test_a_ray_that_is_not_there_is_one_line(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = project.run(GOLD, "ray", "nowhere")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(StageError, match=r"compute\.executor .*RAY_ADDRESS 127\.0\.0\.1:1 does no"):
        run.make()
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(StageError, match=r"compute\.executor .* install 'sr-distillery\[ray\]'"):
        run.make()


def test_the_executor_is_in_no_version(project: Project) -> None:
    local, on_ray = (build_graph(project.recipe(executor)) for executor in ("local", "ray"))
    assert local.stages.keys() == on_ray.stages.keys()
    for key, stage in local.stages.items():
        other = on_ray.stages[key]
        assert code_version(stage) == code_version(other)
        for partition in local.partitions(stage):
            assert stage.partition_settings(partition) == other.partition_settings(partition)


def _finished(building: Path) -> list[str]:
    """SR of the shards that are whole, of an output that is being built.

    A kill may come between the arrays of one shard: such a shard is made again.
    """
    numbers = [
        {file.relative_to(array).parts[1] for file in array.glob("c/[0-9]*/0/**/0")}
        for array in (building / "cache.zarr" / name for name in _ARRAYS)
    ]
    whole = set.intersection(*numbers)
    return sorted(f"cache.zarr/sr/c/{number}/0/0/0/0" for number in whole)


def _runs(process: int) -> bool:
    try:  # the dead whom nobody buries are gone, too
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _wait(until: Callable[[], bool]) -> None:
    give_up = time.monotonic() + _PATIENCE
    while not until():
        assert time.monotonic() < give_up, "it never came"
        time.sleep(0.02)
