"""The automation on real Dagster instances: what is asked for, registered, watched and told."""

import json
import smtplib
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from hub_server import HubServer
from PIL import Image
from test_lineage import World

from sr_assets.automation import failures, hub_revisions, inbox
from sr_assets.automation.freshness import FIRST_WAIT, TRIES, StaleOnce, freshness_sensor
from sr_assets.automation.names import INTERRUPTED
from sr_assets.automation.refresh import refresh_job
from sr_assets.definitions import code_location
from sr_assets.graph import build_graph
from sr_assets.lineage.build import register_partitions
from sr_assets.lineage.dagster_assets import to_asset
from sr_assets.lineage.records import asset_key, current_output
from sr_assets.lineage.runs import execute
from sr_assets.lineage.stage import Ref
from sr_assets.recipe.loading import RecipeError, load_recipe
from sr_assets.recipe.models import Recipe
from sr_assets.recipe.sources import HubSource
from sr_assets.sources.files import Fetching
from sr_assets.sources.finding import fingerprint
from sr_assets.sources.hub_client import open_commit

_OFF = dg.DefaultSensorStatus.STOPPED
RAW_A, RAW_B = Ref("raw/text", "a"), Ref("raw/text", "b")
UPPER_A, UPPER_B, TOTAL = Ref("upper/text", "a"), Ref("upper/text", "b"), Ref("total/text")


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "home").mkdir()
    with dg.DagsterInstance.local_temp(
        str(tmp_path / "home"), overrides={"telemetry": {"enabled": False}}
    ) as found:
        yield found


# --- Freshness


class Ticks:
    """A world whose assets have the condition, and the cursor of the sensor."""

    def __init__(self, world: World) -> None:
        self.world, self.cursor = world, None
        self.reload()

    def reload(self) -> None:
        """As a run does, which loads the recipe and the code that are there now."""
        world = self.world
        graph = world.graph()
        register_partitions(graph, world.instance)
        condition = StaleOnce(world.graph)
        self.assets = [to_asset(stage, graph, condition) for stage in graph.stages.values()]
        self.definitions = dg.Definitions(
            assets=self.assets, sensors=[freshness_sensor(self.assets, _OFF)]
        )
        self.job = self.definitions.resolve_implicit_global_asset_job_def()

    def tick(self, later: float = 0.0) -> set[Ref]:
        """What one tick asks for, so many seconds later than it is."""
        result = dg.evaluate_automation_conditions(
            self.definitions,
            self.world.instance,
            cursor=self.cursor,
            evaluation_time=datetime.now(UTC) + timedelta(seconds=later),
        )
        self.cursor = result.cursor
        asked = set()
        for key in ("raw/text", "upper/text"):
            for partition in result.get_requested_partitions(asset_key(Ref(key))):
                asked.add(Ref(key, partition))
        if result.get_num_requested(asset_key(TOTAL)):
            asked.add(TOTAL)
        assert result.total_requested == len(asked)
        return asked

    def tick_and_run(self) -> set[Ref]:
        """As `tick`, and what was asked for has run when it returns."""
        asked = self.tick()
        for ref in sorted(asked):
            execute(self.job, self.world.instance, [ref])
        return asked


@pytest.fixture
def world(tmp_path: Path, instance: dg.DagsterInstance) -> World:
    (tmp_path / "root").mkdir()
    return World(tmp_path / "root", instance)


@pytest.fixture
def ticks(world: World) -> Ticks:
    return Ticks(world)


def test_what_is_missing_is_asked_for_level_by_level_and_once(ticks: Ticks) -> None:
    assert ticks.tick() == {RAW_A, RAW_B}
    assert ticks.tick() == set()  # asked for, not made yet
    for ref in (RAW_A, RAW_B):
        execute(ticks.job, ticks.world.instance, [ref])
    assert ticks.tick_and_run() == {UPPER_A, UPPER_B}
    assert ticks.tick_and_run() == {TOTAL}
    assert ticks.tick() == set()
    assert not ticks.world.behind()


def test_what_fails_is_asked_for_again_only_when_something_changed(ticks: Ticks) -> None:
    world = ticks.world
    ticks.tick_and_run()
    world.broken.add(UPPER_A)
    assert ticks.tick_and_run() == {UPPER_A, UPPER_B}
    assert [ticks.tick_and_run() for _ in range(3)] == [set(), set(), set()]
    world.texts["a"] = "three"
    assert ticks.tick_and_run() == {RAW_A}
    assert ticks.tick_and_run() == {UPPER_A}  # fails again
    assert ticks.tick_and_run() == set()
    world.broken.clear()
    assert ticks.tick_and_run() == set()  # the world outside is not known to be mended
    world.settings["upper.mark"] = "?"
    ticks.reload()
    assert ticks.tick_and_run() == {UPPER_A, UPPER_B}
    assert ticks.tick_and_run() == {TOTAL}
    assert ticks.tick() == set()


def test_equal_content_stops_the_work_and_only_what_changed_reruns(ticks: Ticks) -> None:
    world = ticks.world
    world.make()
    assert ticks.tick() == set()
    world.texts["a"] = "one  "
    assert ticks.tick_and_run() == {RAW_A}
    assert ticks.tick() == set()
    world.texts["b"] = "four"
    assert [ticks.tick_and_run() for _ in range(4)] == [{RAW_B}, {UPPER_B}, {TOTAL}, set()]


def test_an_output_that_is_deleted_is_asked_for_again(ticks: Ticks) -> None:
    world = ticks.world
    assert [len(ticks.tick_and_run()) for _ in range(4)] == [2, 2, 1, 0]
    for _ in range(2):
        output = current_output(world.instance, world.graph(), UPPER_A)
        assert output is not None
        for file in Path(str(output.path)).iterdir():
            file.unlink()
        assert ticks.tick_and_run() == {UPPER_A}
        assert ticks.tick() == set()


def test_what_an_unfinished_run_makes_is_not_asked_for_until_it_was_interrupted(
    ticks: Ticks,
) -> None:
    instance = ticks.world.instance
    run = instance.create_run_for_job(
        ticks.job, asset_selection=frozenset({asset_key(RAW_A)}), tags={"dagster/partition": "a"}
    )
    assert ticks.tick_and_run() == {RAW_B}
    instance.report_run_canceled(run)
    assert RAW_A in ticks.tick()
    assert ticks.tick() == set()
    instance.add_run_tags(run.run_id, {INTERRUPTED: "true"})  # as if it had been that request
    assert ticks.tick() == {RAW_A}
    assert ticks.tick() == set()


def _crash(ticks: Ticks, ref: Ref) -> None:
    """A run of one output that ends as one does whose recipe could not be loaded."""
    tags = {} if ref.partition is None else {"dagster/partition": ref.partition}
    run = ticks.world.instance.create_run_for_job(
        ticks.job, asset_selection=frozenset({asset_key(ref)}), tags=tags
    )
    ticks.world.instance.report_run_failed(run)


def test_a_run_without_a_failed_step_is_asked_for_again_later_and_not_for_ever(
    ticks: Ticks,
) -> None:
    assert ticks.tick() == {RAW_A, RAW_B}
    execute(ticks.job, ticks.world.instance, [RAW_B])
    waits = []
    for tried in range(1, TRIES):
        _crash(ticks, RAW_A)
        _crash(ticks, RAW_A)  # Dagster's own retry
        wait = FIRST_WAIT * 2 ** (tried - 1)
        waits.append(wait)
        assert RAW_A not in ticks.tick(wait - 30)
        assert RAW_A in ticks.tick(wait + 1)
        assert ticks.tick(wait + 1) == set(), "once for each crash"
    assert sum(waits) < 3 * 3600
    _crash(ticks, RAW_A)
    assert ticks.tick(1e6) == set()
    ticks.world.texts["a"] = "three"
    assert ticks.tick() == {RAW_A}, "another state starts afresh"
    _crash(ticks, RAW_A)
    assert ticks.tick(FIRST_WAIT + 1) == {RAW_A}


def test_a_step_that_failed_in_the_retry_of_a_crash_counts_as_failed(ticks: Ticks) -> None:
    world = ticks.world
    world.broken.add(RAW_A)
    assert ticks.tick() == {RAW_A, RAW_B}
    _crash(ticks, RAW_A)
    execute(ticks.job, world.instance, [RAW_A])
    assert RAW_A not in ticks.tick(1e6)
    (record,) = world.instance.get_run_records(limit=1)
    assert record.dagster_run.tags["dagster/failure_reason"] == "STEP_FAILURE"
    # Killed after its step failed and before it could say so.
    run = world.instance.create_run_for_job(
        ticks.job, asset_selection=frozenset({asset_key(RAW_B)}), tags={"dagster/partition": "b"}
    )
    event = next(
        e for e in world.instance.all_logs(record.dagster_run.run_id)
        if e.dagster_event and e.dagster_event.is_step_failure
    )  # fmt: skip
    world.instance.store_event(event._replace(run_id=run.run_id))
    world.instance.report_run_failed(run)
    assert RAW_B not in ticks.tick(1e6)


def test_a_partition_that_came_later_is_asked_for_and_nothing_else(ticks: Ticks) -> None:
    world = ticks.world
    world.make()
    world.texts["c"] = "five"
    ticks.reload()
    asked = [ticks.tick_and_run() for _ in range(4)]
    assert asked == [{Ref("raw/text", "c")}, {Ref("upper/text", "c")}, {TOTAL}, set()]


def test_a_partition_that_nobody_registered_is_made_known(ticks: Ticks) -> None:
    world = ticks.world
    world.make()
    world.texts["c"] = "five"  # in the recipe; the code location was loaded before
    assert "c" not in world.instance.get_dynamic_partitions("dataset")
    assert Ref("raw/text", "c") in ticks.tick() | ticks.tick()


# --- The job


def test_the_job_builds_everything_and_names_what_failed(world: World) -> None:
    graph = world.graph()
    assets = [to_asset(stage, graph) for stage in graph.stages.values()]
    job = refresh_job(graph, assets, dg.in_process_executor)
    world.broken.add(UPPER_A)
    result = job.execute_in_process(instance=world.instance, raise_on_error=False)
    assert not result.success
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    data = failure.step_failure_data.user_failure_data
    assert data is not None and data.description is not None
    assert data.description.startswith("1 failed, 1 that need them were not tried: upper/text[a]: ")
    assert world.behind() == {"upper/text[a]", "total/text"}

    world.broken.clear()
    assert job.execute_in_process(instance=world.instance).success
    assert not world.behind()
    event = world.instance.get_latest_materialization_event(asset_key(TOTAL))
    assert event is not None and event.run_id != result.run_id  # a run of its own, for the UI
    world.ran.clear()
    assert job.execute_in_process(instance=world.instance).success
    assert world.ran == []


# --- The inbox


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    source = {"kind": "folder", "path": "photos"}
    data = {
        "name": "small",
        "root": str(tmp_path / "out"),
        "datasets": {"mine": {"source": source}},
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(data))
    return tmp_path / "small.yaml"


def _photo(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise((32, 32), 50).convert("RGB").save(file)


def test_a_folder_becomes_a_dataset_once_it_has_settled(
    recipe_file: Path, instance: dg.DagsterInstance
) -> None:
    folder = recipe_file.parent / "inbox"
    sensor = inbox.inbox_sensor(lambda: load_recipe(recipe_file), str(recipe_file), _OFF)
    cursor = None

    def tick() -> tuple[dict[str, list[str]], str]:
        nonlocal cursor
        with dg.build_sensor_context(instance, cursor=cursor) as context:
            result = sensor(context)
        assert isinstance(result, dg.SensorResult)
        cursor = result.cursor
        added = {}
        for request in result.dynamic_partitions_requests or []:
            added[request.partitions_def_name] = list(request.partition_keys)
            instance.add_dynamic_partitions(request.partitions_def_name, request.partition_keys)
        return added, str(result.skip_reason.skip_message if result.skip_reason else "")

    added, said = tick()
    assert added == {"source": ["mine"], "dataset": ["mine"]}
    assert f"put into {folder} become datasets" in said
    for name in ("holiday", ".hidden", "2 bad", "mine"):
        _photo(folder / name / "1.png")
    (folder / "empty").mkdir()
    (folder / "loose.png").write_bytes(b"")

    added, said = tick()
    assert added == {}
    assert "holiday holds 1 images; it is taken when it changes no more" in said
    assert "empty holds no image yet" in said and ".hidden is hidden" in said
    assert "loose.png is no folder" in said and "mine is the name of another dataset" in said
    _photo(folder / "holiday" / "2.png")
    assert tick()[0] == {}  # it grew
    added, said = tick()
    assert added == {"source": ["holiday"], "dataset": ["holiday"]}
    assert "registered holiday" in said and "'2 bad' cannot be a dataset" in said
    dataset = load_recipe(recipe_file).datasets["holiday"]
    assert dataset.source.kind == "folder" and dataset.source.path == str(folder / "holiday")
    assert not dataset.training
    assert "holiday" not in tick()[1]
    (recipe_file.parent / "beside").mkdir()
    roundabout = recipe_file.parent / "beside" / ".." / "inbox"  # the recipe named another way
    assert not any(
        "holiday" in line for line in inbox.look(roundabout, load_recipe(recipe_file), {}).said
    )


def test_a_kill_between_registration_and_partitions_loses_nothing(
    recipe_file: Path, instance: dg.DagsterInstance
) -> None:
    _photo(recipe_file.parent / "inbox" / "holiday" / "1.png")
    sensor = inbox.inbox_sensor(lambda: load_recipe(recipe_file), str(recipe_file), _OFF)
    results = []
    cursor = None
    for _ in range(3):  # no partition request is ever carried out
        with dg.build_sensor_context(instance, cursor=cursor) as context:
            results.append(sensor(context))
        cursor = results[-1].cursor
    wanted = [list(r.partition_keys) for r in results[-1].dynamic_partitions_requests]
    assert wanted == [["mine", "holiday"], ["mine", "holiday"]]


# --- The hub


def test_a_branch_that_moved_makes_the_source_stale_once(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SRD_CACHE", str(tmp_path / "cache"))
    first = hub.commit("owner/photos", {"a.png": b"1"})
    source = HubSource(kind="hub", repo="owner/photos", revision="main")
    pinned = HubSource(kind="hub", repo="owner/photos", revision=first)
    data = {name: {"source": s.model_dump()} for name, s in (("b", source), ("c", pinned))}
    recipe = Recipe.model_validate({"name": "x", "datasets": data})

    assert hub_revisions.look(recipe) == ([], [])  # never fetched
    fetching = Fetching(
        "w", tmp_path, tmp_path / "cache" / "sources", 1, lambda line: None, lambda *_: None
    )
    open_commit(source, fetching)
    assert hub_revisions.look(recipe) == ([], [])
    assert fingerprint(source) == {}
    second = hub.commit("owner/photos", {"a.png": b"2"})
    moved, problems = hub_revisions.look(recipe)
    assert moved == [f"datasets.b.source: owner/photos@main moved to {second[:12]}"]
    assert fingerprint(source) == {"owner/photos@main": second}
    assert fingerprint(pinned) == {} and problems == []
    assert open_commit(source, fetching).sha == second
    assert hub_revisions.look(recipe) == ([], [])
    assert fingerprint(source) == {"owner/photos@main": second}, "what was made from it stays fresh"
    hub.stop()
    moved, (problem,) = hub_revisions.look(recipe)
    assert moved == [] and problem.startswith("datasets.b.source: the hub at ")


# --- Failures


@pytest.fixture
def posted() -> Iterator[tuple[str, list[Any]]]:
    """Address of a server that keeps what is posted to it."""
    bodies: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/hook", bodies
    server.shutdown()
    server.server_close()


def test_a_failed_run_is_told_in_one_line(
    world: World, posted: tuple[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, bodies = posted
    world.broken.add(RAW_A)
    ticks = Ticks(world)
    result = execute(ticks.job, world.instance, [RAW_A])
    event = result.get_run_failure_event()
    sensor = failures.failure_sensor("world", "MY_HOOK", running=True)
    assert sensor.default_status is dg.DefaultSensorStatus.STOPPED

    def fail() -> Any:
        with dg.build_run_status_sensor_context(
            "tell_failures", event, world.instance, result.dagster_run
        ) as context:
            return sensor(context.for_run_failure())

    assert "neither MY_HOOK nor SRD_MAIL_TO is set" in fail().skip_message
    monkeypatch.setenv("MY_HOOK", address)
    monkeypatch.setenv("SRD_UI_ADDRESS", "http://127.0.0.1:3000")
    assert failures.failure_sensor("world", "MY_HOOK", True).default_status.value == "RUNNING"
    assert failures.failure_sensor("world", "MY_HOOK", False).default_status.value == "STOPPED"
    fail()
    assert bodies == [
        {
            "text": "SR Distillery, recipe world: raw/text[a]: field x is wrong: mend it "
            f"(look at http://127.0.0.1:3000/runs/{result.run_id})"
        }
    ]


def test_a_run_that_failed_before_its_steps_says_why(
    world: World, posted: tuple[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, bodies = posted
    run = world.instance.create_run_for_job(Ticks(world).job)
    event = world.instance.report_run_failed(run, "the recipe r.yaml could not be read")
    monkeypatch.setenv("MY_HOOK", address)
    sensor = failures.failure_sensor("world", "MY_HOOK", running=True)
    with dg.build_run_status_sensor_context("tell_failures", event, world.instance, run) as context:
        sensor(context.for_run_failure())
    assert "recipe world: the recipe r.yaml could not be read (look at" in bodies[0]["text"]


def test_a_redirected_message_is_told_as_not_taken(posted: tuple[str, list[Any]]) -> None:
    class Moved(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(302)
            self.send_header("Location", posted[0])
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Moved)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    outlets = failures.Outlets(f"http://127.0.0.1:{server.server_port}/hook", None, "", "")
    (problem,) = failures.tell("it failed", outlets)
    server.shutdown()
    server.server_close()
    assert "HTTP 302" in problem and not posted[1]


def test_mail_goes_to_the_server_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[EmailMessage] = []

    class Server:
        def __init__(self, host: str, port: int, timeout: float) -> None:
            assert (host, port) == ("mail.example", 2525)

        def __enter__(self) -> "Server":
            return self

        def __exit__(self, *details: Any) -> None:
            pass

        def send_message(self, message: EmailMessage) -> None:
            sent.append(message)

    monkeypatch.setattr(smtplib, "SMTP", Server)
    monkeypatch.setenv("SRD_MAIL_TO", "a@example.org")
    monkeypatch.setenv("SRD_SMTP", "mail.example:2525")
    assert failures.tell("it failed", failures.outlets_of("NONE")) == []
    assert (sent[0]["To"], sent[0]["From"]) == ("a@example.org", "a@example.org")
    assert sent[0].get_content().strip() == "it failed"


def test_an_outlet_that_does_not_answer_is_said_and_nothing_is_raised() -> None:
    outlets = failures.Outlets("http://127.0.0.1:1/x", None, "", "")
    (problem,) = failures.tell("line", outlets)
    assert problem.startswith("the webhook did not take it")
    (problem,) = failures.tell("line", replace(outlets, webhook="file:///etc/passwd"))
    assert "neither http:// nor https://" in problem


# --- The recipe and the code location


def test_the_section_refuses_what_is_no_cron_and_no_zone(recipe_file: Path) -> None:
    data = yaml.safe_load(recipe_file.read_text())
    for section, said in (
        ({"nightly": "61 3 * * *"}, "no cron expression"),
        ({"timezone": "Mars/Base"}, "no time zone"),
        ({"webhook": "https://x"}, "automation.webhook"),
    ):
        recipe_file.write_text(yaml.safe_dump({**data, "automation": section}))
        with pytest.raises(RecipeError, match=said):
            load_recipe(recipe_file)


def test_the_schedule_runs_when_the_recipe_says(recipe_file: Path) -> None:
    data = yaml.safe_load(recipe_file.read_text())
    assert not code_location(
        build_graph(load_recipe(recipe_file)), str(recipe_file), True
    ).schedules
    data["benchmarks"] = {"bench": {"source": {"kind": "folder", "path": "photos"}}}
    data["automation"] = {"nightly": "30 4 * * 1", "timezone": "Europe/Berlin"}
    recipe_file.write_text(yaml.safe_dump(data))
    graph = build_graph(load_recipe(recipe_file))
    for running in (True, False):
        location = code_location(graph, str(recipe_file), running)
        schedule = location.get_schedule_def("nightly_evaluation")
        assert schedule.cron_schedule == "30 4 * * 1"
        assert schedule.execution_timezone == "Europe/Berlin"
        assert (schedule.default_status is dg.DefaultScheduleStatus.RUNNING) is running
        for name in ("keep_fresh", "inbox", "hub_revisions"):
            sensor = location.get_sensor_def(name)
            assert (sensor.default_status is dg.DefaultSensorStatus.RUNNING) is running
            assert (sensor.minimum_interval_seconds or 0) >= 30


def test_the_hub_sensor_says_that_nothing_moved(recipe_file: Path) -> None:
    sensor = hub_revisions.hub_sensor(lambda: load_recipe(recipe_file), _OFF)
    assert sensor().skip_message == "no branch or tag has moved"


def test_the_clock_fires_the_night(recipe_file: Path, instance: dg.DagsterInstance) -> None:
    data = yaml.safe_load(recipe_file.read_text())
    data["benchmarks"] = {"bench": {"source": {"kind": "folder", "path": "photos"}}}
    recipe_file.write_text(yaml.safe_dump(data))
    location = code_location(build_graph(load_recipe(recipe_file)), str(recipe_file), True)
    repository = location.get_repository_def()
    schedule = repository.get_schedule_def("nightly_evaluation")
    at = datetime(2026, 11, 21, 3, tzinfo=UTC)
    with dg.build_schedule_context(
        instance, scheduled_execution_time=at, repository_def=repository
    ) as context:
        (request,) = schedule.evaluate_tick(context).run_requests or []
    assert request.tags["dagster/schedule_name"] == "nightly_evaluation"
    keys = repository.get_job("nightly_evaluation").asset_layer.executable_asset_keys
    assert {key.to_user_string() for key in keys} == {"evaluation/nightly"}
