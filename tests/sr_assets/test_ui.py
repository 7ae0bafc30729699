"""What the Dagster UI is given, who may start one, and what a stopped one leaves behind."""

import fcntl
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster_webserver.webserver import DagsterWebserver
from PIL import Image
from starlette.testclient import TestClient

from sr_assets.definitions import RECIPE_VARIABLE, build_defs
from sr_assets.graph import build_graph
from sr_assets.home import dagster_home
from sr_assets.lineage.build import build
from sr_assets.lineage.runs import bury_dead_runs
from sr_assets.lineage.stage import StageError
from sr_assets.recipe.loading import RecipeError, load_recipe
from sr_assets.ui import serve

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Dagster home that this process and its children use."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    return dagster_home()


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe of one dataset and one model, in the current folder, with the default root."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    Image.effect_noise((64, 48), 50).convert("RGB").save(tmp_path / "photos" / "a.png")
    source = {"kind": "folder", "path": "photos"}
    network = {"architecture": "Compact", "args": {"num_feat": 8, "num_conv": 1}}
    plain = {"kind": "plain", "network": network, "train": {"steps": 4}}
    data = {"name": "small", "datasets": {"photos": {"source": source}}, "models": {"plain": plain}}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(data))
    return tmp_path / "small.yaml"


@pytest.fixture
def ask(home: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The webserver's GraphQL, over the workspace of the repository; bronze has been made."""
    graph = build_graph(load_recipe(recipe))
    monkeypatch.setenv(RECIPE_VARIABLE, str(recipe))
    with dg.DagsterInstance.from_config(str(home)) as instance:
        job = build_defs(graph).resolve_implicit_global_asset_job_def()
        build(graph, job, instance, graph.select(["bronze/images"]), lambda line: None)
        monkeypatch.chdir(REPOSITORY)  # what workspace.yaml calls "."
        workspace = WorkspaceFileTarget([str(REPOSITORY / "workspace.yaml")])
        with WorkspaceProcessContext(instance, workspace) as context:
            client = TestClient(DagsterWebserver(context).create_asgi_app())

            def query(text: str) -> Any:
                answer = client.post("/graphql", json={"query": text}).json()
                assert "errors" not in answer, answer
                return answer["data"]

            yield query


def test_the_graph_and_a_materialisation_as_the_ui_gets_them(ask: Any, recipe: Path) -> None:
    (location,) = ask(
        "{workspaceOrError {... on Workspace {"
        "locationEntries {name locationOrLoadError {__typename}}}}}"
    )["workspaceOrError"]["locationEntries"]
    assert location == {
        "name": "sr_assets",
        "locationOrLoadError": {"__typename": "RepositoryLocation"},
    }
    nodes = {
        "/".join(node["assetKey"]["path"]): node
        for node in ask(
            "{assetNodes {assetKey {path} groupName kinds pools partitionKeys staleStatus}}"
        )["assetNodes"]
    }
    assert {key: node["groupName"] for key, node in nodes.items()} == {
        "bronze/images": "bronze",
        "bronze/benchmarks": "bronze",
        "bronze/overlap": "bronze",
        "silver/patches": "silver",
        "gold/pairs": "gold",
        "model/plain/checkpoint": "model_plain",
        "model/plain/export": "model_plain",
    }
    assert nodes["model/plain/checkpoint"]["kinds"] == ["pytorch"]
    assert nodes["model/plain/checkpoint"]["pools"] == ["gpu"]
    assert nodes["model/plain/checkpoint"]["staleStatus"] == "MISSING"
    assert nodes["silver/patches"]["partitionKeys"] == ["photos"]  # registered while loading
    assert _stale(ask, "bronze", "images") == ["FRESH"]
    assert _stale(ask, "silver", "patches") == ["MISSING"]

    shown = ask(
        '{assetOrError(assetKey: {path: ["bronze", "images"]}) {... on Asset {'
        "assetMaterializations(limit: 1) {metadataEntries {label __typename "
        "... on TextMetadataEntry {text} ... on PathMetadataEntry {path} "
        "... on BoolMetadataEntry {boolValue}}}}}}"
    )["assetOrError"]["assetMaterializations"][0]["metadataEntries"]
    entries = {entry.pop("label"): entry for entry in shown}
    assert list(entries)[-4:] == ["took", "reused", "path", "address"]
    assert entries["images"]["__typename"] == "IntMetadataEntry"  # drawn as a plot
    assert entries["bytes"]["__typename"] == "TextMetadataEntry"  # a fact, not a curve
    assert "quarantine" not in entries  # nothing was quarantined
    assert entries["sizes"]["__typename"] == "MarkdownMetadataEntry"
    assert entries["page"]["path"].endswith("page.html")
    assert entries["reused"]["boolValue"] is False
    assert Path(entries["path"]["path"]).is_relative_to(recipe.parent / "data" / "small")


def _stale(ask: Any, *key: str) -> list[str]:
    """The marks of the only partition of an asset."""
    node = f"assetNodeOrError(assetKey: {{path: {json.dumps(key)}}})"
    marks = '... on AssetNode {staleStatusByPartition(partitions: ["photos"])}'
    return ask(f"{{{node} {{{marks}}}}}")["assetNodeOrError"]["staleStatusByPartition"]


def test_a_second_ui_on_the_same_home_is_refused(home: Path, recipe: Path) -> None:
    with (home / "ui.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("http://127.0.0.1:3999 (process 7)")
        lock.flush()
        with pytest.raises(
            StageError, match=r"runs already at .*:3999 \(process 7\): stop that one"
        ):
            serve(str(recipe), 3998, pytest.fail)


def test_a_busy_port_is_refused(home: Path, recipe: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(StageError, match=rf"port {port} .*give another --port"):
            serve(str(recipe), port, pytest.fail)
    with pytest.raises(StageError, match=r"port 99999 .*give another --port"):
        serve(str(recipe), 99999, pytest.fail)


def test_a_wrong_recipe_is_refused_before_anything_starts(home: Path) -> None:
    with pytest.raises(RecipeError, match="nowhere: no such recipe"):
        serve("nowhere", 3998, pytest.fail)
    assert not (home / "ui.lock").exists()


def test_runs_of_a_stopped_ui_are_cancelled_and_give_back_their_slots(tmp_path: Path) -> None:
    with (
        socket.socket(socket.AF_UNIX) as living,
        dg.DagsterInstance.local_temp(str(tmp_path)) as instance,
    ):
        living.bind(str(tmp_path / "living"))
        living.listen()
        storage = instance.event_log_storage
        storage.set_concurrency_slots("gpu", 2)

        def start(server: str) -> dg.DagsterRun:
            tag = json.dumps({"host": "localhost", "socket": str(tmp_path / server)})
            run = instance.create_run_for_job(_job, tags={GRPC_INFO_TAG: tag})
            instance.handle_new_event(_event(run, "PIPELINE_START"))
            claim = storage.claim_concurrency_slot("gpu", run.run_id, "step")
            assert claim.is_claimed
            return run

        kept, lost = start("living"), start("stopped")
        assert bury_dead_runs(instance) == [lost.run_id]
        assert instance.get_run_by_id(lost.run_id).status is dg.DagsterRunStatus.CANCELED
        assert instance.get_run_by_id(kept.run_id).status is dg.DagsterRunStatus.STARTED
        assert storage.get_concurrency_info("gpu").active_run_ids == {kept.run_id}


@dg.job
def _job() -> None:
    """A job of nothing."""


def _event(run: dg.DagsterRun, kind: str) -> Any:
    from dagster._core.events import DagsterEvent, DagsterEventType
    from dagster._core.events.log import EventLogEntry

    event = DagsterEvent(DagsterEventType(kind).value, run.job_name)
    return EventLogEntry(None, 10, "", run.run_id, 0.0, dagster_event=event)
