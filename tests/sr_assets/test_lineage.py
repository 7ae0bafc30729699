"""The stale plan and the build, on a small graph with a real Dagster instance."""

import dataclasses
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from upath import UPath

from sr_assets.definitions import build_defs
from sr_assets.graph import Graph
from sr_assets.lineage import runs
from sr_assets.lineage.build import BuildResult, build, to_do
from sr_assets.lineage.dagster_assets import _alone
from sr_assets.lineage.plan import survey
from sr_assets.lineage.records import current_address, current_output
from sr_assets.lineage.stage import Ref, Stage, StageContext, StageError
from sr_assets.recipe.models import Recipe

_HOME = {"concurrency": {"pools": {"default_limit": 1}}, "telemetry": {"enabled": False}}


class World:
    """Text files stand for images: raw[d] reads a file, upper[d] its capitals, total reads both."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance) -> None:
        self.folder, self.instance = folder, instance
        self.texts = {"a": "one", "b": "two"}
        self.settings: dict[str, Any] = {"upper.mark": "!"}
        self.broken: set[Ref] = set()
        self.ran: list[str] = []
        self.act: Callable[[Ref], None] = lambda ref: None

    def graph(self) -> Graph:
        source = {"kind": "builtin", "images": ["x.png"]}
        recipe = Recipe.model_validate(
            {
                "name": "world",
                "root": str(self.folder),
                "datasets": {d: {"source": source} for d in self.texts},
            }
        )
        module = ("sr_assets.lineage.stage",)  # steering: an empty code slice
        stages = [
            Stage(
                "raw/text", "", "g", self.raw, module, partitions="dataset",
                outside=lambda p: {p: self.texts[p]},
            ),
            Stage(
                "upper/text", "", "g", self.upper, module, partitions="dataset",
                inputs=lambda p: [Ref("raw/text", p)], settings=self.settings,
            ),
            Stage(
                "total/text", "", "g", self.total, module,
                inputs=lambda p: [Ref("upper/text", d) for d in self.texts], pool="gpu",
                checks={"long": "is long enough"},
            ),
        ]  # fmt: skip
        return Graph(recipe, UPath(self.folder), {s.key: s for s in stages})

    def start(self, context: StageContext) -> None:
        self.ran.append(str(context.ref))
        self.act(context.ref)
        if context.ref in self.broken:
            raise StageError("field x is wrong: mend it")

    def raw(self, context: StageContext) -> dict[str, Any]:
        self.start(context)
        context.output.write_bytes("text", self.texts[context.partition].strip().encode())
        return {"letters": len(self.texts[context.partition])}

    def upper(self, context: StageContext) -> dict[str, Any]:
        self.start(context)
        text = context.input("raw/text", context.partition).read_bytes("text")
        mark = self.settings["upper.mark"].encode()
        context.output.write_bytes("text", text.upper() + mark)
        return {}

    def total(self, context: StageContext) -> dict[str, Any]:
        self.start(context)
        with context.progress("adding", len(context.inputs)) as advance:
            parts = [output.read_bytes("text") for output in context.inputs.values()]
            advance(len(parts))
        context.observe({"parts": len(parts)})
        context.output.write_bytes("text", b" ".join(sorted(parts)))
        check = {"name": "long", "passed": True, "reason": "it is", "numbers": {"n": 3}}
        return {"table": {"md": "|a|\n|-|"}, "checks": [check]}

    def make(self, selection: list[str] | None = None) -> BuildResult:
        self.ran.clear()
        graph = self.graph()
        job = build_defs(graph).resolve_implicit_global_asset_job_def()
        chosen = graph.select(selection) if selection else set(graph.refs())
        return build(graph, job, self.instance, chosen, lambda line: None)

    def states(self) -> dict[str, tuple[str, str]]:
        return {str(r): (s.state, s.why) for r, s in survey(self.graph(), self.instance).items()}

    def behind(self) -> set[str]:
        return {name for name, (state, _) in self.states().items() if state != "fresh"}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    (tmp_path / "home").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "home"), overrides=_HOME) as instance:
        (tmp_path / "root").mkdir()
        yield World(tmp_path / "root", instance)


def test_everything_is_missing_then_made_then_fresh(world: World) -> None:
    assert {state for state, _ in world.states().values()} == {"missing"}
    result = world.make()
    assert len(result.made) == 5 and not result.failed
    assert set(world.ran) == set(world.states())
    assert not world.behind()
    assert world.make().made == [] and world.ran == []


def test_a_change_outside_reruns_that_partition_and_stops_where_content_is_equal(
    world: World,
) -> None:
    world.make()
    world.texts["a"] = "one  "  # another fingerprint, the same content once stripped
    states = world.states()
    assert states["raw/text[a]"] == ("stale", "a changed")
    assert states["upper/text[a]"] == ("stale", "raw/text[a] is stale")
    assert world.behind() == {"raw/text[a]", "upper/text[a]", "total/text"}
    world.make()
    assert world.ran == ["raw/text[a]"]
    assert not world.behind()
    world.texts["a"] = "three"
    world.make()
    assert world.ran == ["raw/text[a]", "upper/text[a]", "total/text"]


def test_a_changed_setting_is_named_and_reverting_it_is_free(world: World) -> None:
    world.make()
    world.settings = {"upper.mark": "?"}
    assert world.states()["upper/text[a]"] == ("stale", "recipe upper.mark ! -> ?")
    world.make()
    assert set(world.ran) == {"upper/text[a]", "upper/text[b]", "total/text"}
    world.settings = {"upper.mark": "!"}
    assert world.behind()
    result = world.make()
    assert world.ran == [] and len(result.made) == 3
    assert not world.behind()


def test_a_failure_holds_back_only_what_needs_it(world: World) -> None:
    world.broken = {Ref("upper/text", "a")}
    result = world.make()
    assert result.failed == {Ref("upper/text", "a"): "field x is wrong: mend it"}
    assert result.held_back == [Ref("total/text")]
    assert "upper/text[b]" in world.ran
    world.broken = set()
    world.make()
    assert world.ran == ["upper/text[a]", "total/text"]


def test_a_deleted_output_is_missing_and_made_again(world: World) -> None:
    import shutil

    world.make()
    output = current_output(world.instance, world.graph(), Ref("upper/text", "b"))
    assert output is not None
    shutil.rmtree(str(output.path))
    assert world.states()["upper/text[b]"][0] == "missing"
    world.make()
    assert world.ran == ["upper/text[b]"]


def test_ctrl_c_ends_the_build_and_not_only_the_step(world: World) -> None:
    world.act = lambda ref: os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        world.make()
    assert world.ran == ["raw/text[a]"]


def test_a_change_during_the_build_holds_back_what_needs_it(world: World) -> None:
    def change(ref: Ref) -> None:
        if ref == Ref("upper/text", "a"):
            world.texts["b"] = "new"

    world.act = change
    result = world.make()
    assert not result.failed
    assert set(result.held_back) == {Ref("total/text")}


def test_two_recipes_in_one_home_keep_their_outputs_apart(world: World, tmp_path: Path) -> None:
    world.make()
    mine = {str(r): s.output for r, s in survey(world.graph(), world.instance).items()}
    other = World(tmp_path / "other", world.instance)
    other.settings = {"upper.mark": "?"}
    assert len(other.make().made) == 5
    assert not world.behind() and not other.behind()
    assert {str(r): s.output for r, s in survey(world.graph(), world.instance).items()} == mine
    (tmp_path / "other").rename(tmp_path / "moved")
    other.folder = tmp_path / "moved"
    assert not other.behind()


def test_the_record_of_a_root_is_found_below_many_of_another(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sr_assets.lineage.records._PAGE", 2)
    ref = Ref("total/text")
    for root, addresses in ((world.folder, ["one"]), (tmp_path / "other", ["x", "y", "z", "w"])):
        for address in addresses:
            metadata = {
                "address": address,
                "path": dg.MetadataValue.path(f"{root}/{ref}/{address}"),
            }
            world.instance.report_runless_asset_event(
                dg.AssetMaterialization(["total", "text"], metadata=metadata)
            )
    graph = world.graph()
    assert current_address(world.instance, graph, ref) == "one"
    moved = dataclasses.replace(graph, root=UPath(tmp_path / "moved"))
    assert current_address(world.instance, moved, ref) == "w"


def test_a_partition_of_another_recipe_fails_and_says_so(world: World) -> None:
    graph = world.graph()
    world.instance.add_dynamic_partitions("dataset", ["theirs"])
    job = build_defs(graph).resolve_implicit_global_asset_job_def()
    result = runs.execute(job, world.instance, [Ref("raw/text", "theirs")])
    (failed,) = [e for e in result.all_events if e.is_step_failure]
    assert "recipe world has no dataset 'theirs'" in str(failed.step_failure_data.error)


def test_only_a_run_whose_process_is_gone_is_buried(world: World) -> None:
    unfinished: list[str] = []

    def look(ref: Ref) -> None:
        (run,) = world.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
        unfinished.append(run.tags["srd/lock"])
        assert runs.bury_dead_runs(world.instance) == []

    world.act = look
    assert not world.make(["raw/text[a]"]).failed and len(unfinished) == 1

    job = build_defs(world.graph()).resolve_implicit_global_asset_job_def()
    dead = world.instance.create_run_for_job(
        job, status=dg.DagsterRunStatus.STARTED, tags={"srd/lock": unfinished[0]}
    )
    # without its lock, it may be a run of another home with the same database
    assert runs.bury_dead_runs(world.instance) == []
    lock = Path(world.instance.root_directory) / "locks" / unfinished[0]
    lock.touch()  # what a killed process leaves
    assert runs.bury_dead_runs(world.instance) == [dead.run_id]
    buried = world.instance.get_run_by_id(dead.run_id)
    assert buried is not None and buried.status == dg.DagsterRunStatus.FAILURE
    assert not lock.exists()


def test_selection_takes_what_it_is_made_from(world: World) -> None:
    world.make(["upper/text[b]"])
    assert world.ran == ["raw/text[b]", "upper/text[b]"]
    with pytest.raises(StageError, match="names no asset"):
        world.make(["lower/text"])


def test_dagster_sees_versions_metadata_checks_and_observations(world: World) -> None:
    world.make()
    key = dg.AssetKey(["total", "text"])
    event = world.instance.get_latest_materialization_event(key)
    assert event is not None and event.asset_materialization is not None
    output = current_output(world.instance, world.graph(), Ref("total/text"))
    assert output is not None
    tags = event.asset_materialization.tags or {}
    assert tags["dagster/data_version"] == output.data_version
    assert isinstance(event.asset_materialization.metadata["table"], dg.MarkdownMetadataValue)
    check = dg.AssetCheckKey(key, "long")
    record = world.instance.event_log_storage.get_latest_asset_check_execution_by_key([check])[
        check
    ]
    assert record.status.value == "SUCCEEDED"
    seen = world.instance.fetch_observations(key, limit=5).records
    assert [r.asset_observation.metadata["parts"].value for r in seen if r.asset_observation] == [2]


def test_to_do_keeps_inputs_first(world: World) -> None:
    todo = to_do(survey(world.graph(), world.instance), set(world.graph().refs()))
    assert [s.ref.asset for s in todo] == ["raw/text"] * 2 + ["upper/text"] * 2 + ["total/text"]


def _enter_and_leave(final: UPath, tell: Callable[[str], None]) -> None:
    with _alone(final, tell):
        pass


@pytest.mark.parametrize("remote", [False, True])
def test_an_output_is_made_by_one_process_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remote: bool
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    final = UPath("memory://test-lineage/a/b") if remote else UPath(tmp_path / "a" / "b")
    told: queue.Queue[str] = queue.Queue()
    second = threading.Thread(target=_enter_and_leave, args=(final, told.put))
    with _alone(final, told.put):
        second.start()
        assert "is being built by" in told.get(timeout=600)
        with _alone(final.with_name("c"), told.put):
            pass
        assert second.is_alive()
    second.join()
    assert told.empty()
