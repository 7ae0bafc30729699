"""The UI from start to stop, as a person uses it: see the graph, press Materialize, Ctrl-C."""

import json
import re
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest
from tiny_project import SRD, Project

_LAUNCH = """
mutation($selector: JobOrPipelineSelector!, $partition: String!) {
  launchPipelineExecution(executionParams: {
    selector: $selector, runConfigData: "{}", mode: "default",
    executionMetadata: {tags: [{key: "dagster/partition", value: $partition}]}
  }) {__typename ... on LaunchRunSuccess {run {runId}}}
}
"""
_PATIENCE = 900  # seconds until it counts as hung


@dataclass
class Ui:
    """A running `srd ui`."""

    process: subprocess.Popen[str]
    address: str
    log: Path

    def ask(self, query: str, **variables: Any) -> Any:
        """An answer of the webserver's GraphQL."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(
            f"{self.address}/graphql", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=_PATIENCE) as answer:
            return json.load(answer)["data"]

    def launch(self, asset: str, partition: str) -> str:
        """What the Materialize button sends; the id of the run."""
        selector = {
            "repositoryName": "__repository__",
            "repositoryLocationName": "sr_assets",
            "pipelineName": "__ASSET_JOB",
            "assetSelection": [{"path": asset.split("/")}],
            "assetCheckSelection": [],
        }
        launched = self.ask(_LAUNCH, selector=selector, partition=partition)
        return launched["launchPipelineExecution"]["run"]["runId"]


@pytest.fixture
def ui(empty: Project) -> Iterator[Ui]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = empty.folder / "ui.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [*SRD, "ui", "--recipe", empty.recipe_file.name, "--port", str(port)],
            cwd=empty.folder, stdout=out, stderr=out, text=True,
            env={**empty.environment(), "SRD_AUTOMATION": "off"},  # nothing runs by itself
        )  # fmt: skip
    try:
        _wait(lambda: "The graph is at" in log.read_text(), process, log)
        yield Ui(process, f"http://127.0.0.1:{port}", log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(_PATIENCE)


@pytest.mark.slow
def test_a_run_from_the_ui_writes_where_srd_reads_and_ctrl_c_leaves_nothing(
    ui: Ui, empty: Project
) -> None:
    refused = empty.srd("ui", "--port", "1", code=1)
    assert re.search(rf"runs already at {ui.address} \(process \d+\)", refused.stderr)

    for reused in (False, True):
        run_id = ui.launch("bronze/images", "photos")
        with empty.dagster() as instance:
            _wait(lambda i=instance, r=run_id: i.get_run_by_id(r).is_finished, ui.process, ui.log)
            run = instance.get_run_by_id(run_id)
            assert run.status is dg.DagsterRunStatus.SUCCESS, ui.log.read_text()
            made = instance.get_latest_materialization_event(dg.AssetKey(["bronze", "images"]))
            assert made.asset_materialization.metadata["reused"].value is reused
    path = Path(empty.srd_json("path", "bronze/images", "photos")["path"])
    assert path.is_relative_to(empty.root)
    assert empty.status()["bronze/images[photos]"]["state"] == "fresh"

    family = psutil.Process(ui.process.pid).children(recursive=True)
    assert len(family) >= 4  # webserver, daemon, code servers
    ui.process.send_signal(signal.SIGINT)
    assert ui.process.wait(_PATIENCE) == 0
    assert [process for process in family if _lives(process)] == []
    assert "Traceback" not in ui.log.read_text()


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # buried between the two questions
        return False


def _wait(condition: Callable[[], bool], process: subprocess.Popen[str], log: Path) -> None:
    give_up = time.monotonic() + _PATIENCE
    while not condition():
        assert process.poll() is None, f"the UI ended: {log.read_text()}"
        assert time.monotonic() < give_up, f"waited in vain: {log.read_text()}"
        time.sleep(0.2)
