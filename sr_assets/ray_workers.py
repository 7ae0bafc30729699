"""Shards computed by Ray's actors, one an accelerator, which come and go while the work is done.

An actor computes and encodes, and this process writes, so that an output has one writer. Starting,
placing and watching processes is left to Ray; what an actor does is `ray_actor.py`.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sr_assets.lineage.slices import network_modules
from sr_assets.lineage.stage import StageContext, StageError
from sr_assets.ray_actor import Actor, Machine, packages_of
from sr_assets.ray_connection import connected, signals_kept
from sr_assets.storage import is_local
from sr_models.one_line import one_line

if TYPE_CHECKING:
    from sr_assets.executor import Advance, OpenWorker, Take

_LOSSES = 3  # workers that one shard may cost in a row: more is no accident
_LOOK = 2.0  # seconds between two looks at what machines there are
_PATIENCE = 30.0  # seconds without a worker until we say what we wait for


def compute_on_ray(
    context: StageContext,
    shards: Mapping[int, int],
    open_worker: OpenWorker[Any],
    take: Take[Any],
    advance: Advance,
    network: bool,
) -> None:
    """See `executor.compute_shards`.

    A worker has one shard at a time, and its next one before its result is taken: in memory are two
    encoded shards a worker at most.
    """
    with signals_kept() as let_through, connected() as (ray, own):
        crew = _Crew(ray, own, context, open_worker, _share(ray, context, network))
        try:
            for found in crew.compute(deque(shards)):
                let_through()
                for shard, result in found:
                    take(shard, result)
                    advance(shards[shard])
        finally:
            crew.dismiss()


@dataclass(frozen=True)
class _Share:
    """What one worker is given of its machine."""

    device: str
    """Of `compute.device`."""
    threads: int | None
    """Of torch: those of this process, since the last bits of a sum depend on them."""
    cores: int
    accelerators: int

    def __str__(self) -> str:
        return "1 GPU" if self.accelerators else f"CPU cores: {self.cores}"

    def room(self, ray: Any) -> int:
        """How many workers the machines that are there have room for."""
        if self.accelerators:
            return int(sum(there.get("GPU", 0) for there in _machines(ray)))
        return int(sum(there.get("CPU", 0) // self.cores for there in _machines(ray)))


def _machines(ray: Any) -> list[Mapping[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _share(ray: Any, context: StageContext, network: bool) -> _Share:
    if not network:
        return _Share("cpu", threads=None, cores=1, accelerators=0)
    import torch

    device, threads = context.recipe.compute.device, torch.get_num_threads()
    if device == "auto":
        device = "cuda" if any(there.get("GPU") for there in _machines(ray)) else "cpu"
    if device == "cuda":
        return _Share(device, threads, cores=1, accelerators=1)
    largest = max((int(there.get("CPU", 0)) for there in _machines(ray)), default=0)
    return _Share(device, threads, cores=min(threads, largest) or threads, accelerators=0)


@dataclass
class _Crew:
    """The actors of one stage."""

    ray: Any
    own: bool
    context: StageContext
    open_worker: OpenWorker[Any]
    share: _Share
    starting: dict[Any, Any] = field(default_factory=dict)
    """What an actor says once it is there -> the actor."""
    idle: list[Any] = field(default_factory=list)
    busy: dict[Any, tuple[Any, int]] = field(default_factory=dict)
    """Result to come -> its actor and shard."""
    losses: Counter[int | None] = field(default_factory=Counter)
    """Workers lost by each shard; of None, those lost in a row before they had one."""
    looked: float = -_LOOK
    heard: float = field(default_factory=time.monotonic)

    def compute(self, waiting: deque[int]) -> Iterator[list[tuple[int, Any]]]:
        """(shard, its result) of all that wait, as they come; none now and then."""
        while waiting or self.busy:
            self._hire(len(waiting))
            pending = [*self.starting, *self.busy]
            done, _ = self.ray.wait(pending, timeout=_LOOK) if pending else ([], [])
            if not pending:
                time.sleep(_LOOK)
            results = [found for one in done if (found := self._hear(one, waiting))]
            while self.idle and waiting:
                actor, shard = self.idle.pop(), waiting.popleft()
                self.busy[actor.work.remote(shard)] = (actor, shard)
            yield results

    def dismiss(self) -> None:
        """Ends all actors."""
        for actor in [*self.starting.values(), *self.idle, *(a for a, _ in self.busy.values())]:
            self.ray.kill(actor)

    def _hire(self, waiting: int) -> None:
        """Asks for as many actors as there are shards and room for; lets go who has no work."""
        while self.idle and not waiting:
            self.ray.kill(self.idle.pop())
        now = time.monotonic()
        if now - self.looked < _LOOK:
            return
        self.looked = now
        if self.busy:
            self.heard = now
        elif now - self.heard > _PATIENCE:
            self.heard = now
            self.context.log(f"waiting for Ray: no worker yet, which wants {self.share}")
        room = self.share.room(self.ray)
        if self.own and not room:
            raise StageError(
                f"compute.device: a worker wants {self.share}, and this machine has none: set "
                "it to cpu"
            )
        # One more than there is room for asks a cluster that grows on demand to grow.
        wanted = min(room + (0 if self.own else 1), waiting + len(self.busy))
        for _ in range(wanted - len(self.busy) - len(self.idle) - len(self.starting)):
            actor = (
                self.ray.remote(Actor)
                .options(num_cpus=self.share.cores, num_gpus=self.share.accelerators)
                .remote(self.open_worker, self.share.device, self.share.threads)
            )
            here = actor.start.remote(self.own, self._inputs(), self._entries())
            self.starting[here] = actor

    def _inputs(self) -> list[str]:
        """Folders on this machine that every worker reads."""
        paths = [output.path for output in self.context.inputs.values()]
        return [path.path for path in paths if is_local(path)]

    def _entries(self) -> list[str]:
        """Where the code that computes starts."""
        recipe = self.context.recipe
        networks = [*recipe.experts.values(), *recipe.models.values()]
        opened = getattr(self.open_worker, "func", self.open_worker)  # a partial's
        found = [opened.__module__, *(m for network in networks for m in network_modules(network))]
        return [name for name in found if name.startswith("sr_")]

    def _hear(self, one: Any, waiting: deque[int]) -> tuple[int, Any] | None:
        """Takes in that an actor has started, has computed a shard, or is gone."""
        shard: int | None = None
        if one in self.starting:
            actor = self.starting.pop(one)
        else:
            actor, shard = self.busy.pop(one)
        try:
            said = self.ray.get(one)
        except self.ray.exceptions.RayTaskError as error:
            self.ray.kill(actor)
            raise error.cause from error
        except self.ray.exceptions.RayError as error:  # its process or its machine went
            self.ray.kill(actor)
            self._lose(shard, error)
            if shard is not None:
                waiting.appendleft(shard)
            return None
        self.losses.pop(shard, None)
        self.idle.append(actor)
        if shard is not None:
            return shard, said
        self._welcome(said)
        return None

    def _welcome(self, said: Machine) -> None:
        """Lets an actor work whose results are those of this process."""
        if said.missing:
            raise StageError(
                f"compute.executor: {said.name} does not see {said.missing}: use a root on s3://, "
                "or a folder that all machines share under the same path"
            )
        if said.packages != (mine := packages_of(self._entries())):
            raise StageError(
                f"compute.executor: {said.name} has {_told(said.packages, mine)}, this machine "
                f"{_told(mine, said.packages)}, and results might differ: install the same there"
            )
        self.context.log(
            f"Ray worker {said.process} on {said.name}: {self.share.device}, {self.share}"
        )

    def _lose(self, shard: int | None, error: Exception) -> None:
        self.losses[shard] += 1
        few = self.losses[shard] < _LOSSES
        if shard is None and not few:
            reason = str(error).strip().splitlines()[-1]
            raise StageError(
                f"compute.executor: {_LOSSES} Ray workers could not start ({reason}): install "
                "sr-distillery on every machine of the cluster, or set it to local"
            ) from error
        if not few:
            raise StageError(
                f"compute.executor: {_LOSSES} Ray workers were lost at shard {shard} "
                f"({one_line(error)}): see Ray's logs; where memory did not suffice, lower the "
                "expert's batch, or give a worker more of it"
            ) from error
        what = "before it had a shard" if shard is None else f"at shard {shard}"
        self.context.log(f"a Ray worker was lost {what}: another one takes over")


def _told(packages: Mapping[str, str], other: Mapping[str, str]) -> str:
    """Those that differ from the other's."""
    return ", ".join(f"{name} {v}" for name, v in packages.items() if other.get(name) != v)
