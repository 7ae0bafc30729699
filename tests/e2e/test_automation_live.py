"""The automation as a person meets it: photos dropped into the inbox, and a night that is wrong."""

import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from PIL import Image
from tiny_project import SRD, Project, picture

from sr_assets.automation.nightly import CHECK, nightly_asset
from sr_assets.graph import build_graph
from sr_assets.recipe.loading import load_recipe

_PATIENCE = 1800  # seconds until it counts as hung: a level of the graph needs a tick of 30 s
FILLED = {
    f"{asset}[holiday]"
    for asset in (
        *("bronze/images", "bronze/overlap", "silver/patches", "gold/pairs"),
        *("expert/edsr/cache", "expert/compact/cache"),
    )
}


@pytest.fixture
def ui(project: Project) -> Iterator[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = project.folder / "ui.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [*SRD, "ui", "--recipe", project.recipe_file.name, "--port", str(port)],
            cwd=project.folder, env=project.environment(), stdout=out, stderr=out, text=True,
        )  # fmt: skip
    try:
        _wait(lambda: "The graph is at" in log.read_text(), process, log)
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(_PATIENCE)


@pytest.mark.slow
@pytest.mark.timeout(2 * _PATIENCE)
def test_photos_in_the_inbox_become_caches_and_the_rest_stays(
    project: Project, ui: subprocess.Popen[str]
) -> None:
    log = project.folder / "ui.log"
    before = project.status()
    assert {row["state"] for row in before.values()} == {"fresh"}
    folder = project.folder / "inbox" / "holiday"
    folder.mkdir(parents=True)
    for seed in (40, 41):
        Image.fromarray(picture(seed, side=100)).save(folder / f"{seed}.png")

    def filled() -> bool:
        rows = project.status()
        return all(rows.get(name, {}).get("state") == "fresh" for name in FILLED)

    _wait(filled, ui, log, pause=30)  # each look costs seconds that the graph could have
    after = project.status()
    assert {name: after[name] for name in before} == before, "data versions and paths, too"
    with project.dagster() as instance:
        runs = instance.get_runs(
            filters=dg.RunsFilter(tags={"dagster/from_automation_condition": "true"})
        )
        assert {run.tags["dagster/partition"] for run in runs} == {"holiday"}
    ui.send_signal(signal.SIGINT)
    assert ui.wait(_PATIENCE) == 0
    assert "Traceback" not in log.read_text()


@pytest.mark.slow
def test_a_night_measures_every_row_again_and_names_a_benchmark_image_that_changed(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project.folder)
    graph = build_graph(load_recipe(project.recipe_file))

    def night() -> tuple[dict[str, Any], bool, str]:
        with project.dagster() as instance:
            result = dg.materialize([nightly_asset(graph)], instance=instance)
        (made,) = result.asset_materializations_for_node("evaluation__nightly")
        (check,) = result.get_asset_check_evaluations()
        assert check.check_name == CHECK
        return dict(made.metadata), check.passed, check.description or ""

    metadata, passed, said = night()
    assert passed, said
    rows = {"edsr", "compact", "fusion", "alone", "student"}
    for row in {*rows, "bicubic", "mean", "convex"}:
        assert metadata[f"psnr_y {row} on bench"].value > 15
    record = json.loads(Path(metadata["record"].value).read_text())
    assert {row["row"] for row in record["rows"]} >= rows
    assert metadata["largest_move_db"].value == 0

    bronze = Path(project.srd_json("path", "bronze/images", "bench")["path"])
    image = next(bronze.rglob("bench1.png"))
    changed = bytearray(image.read_bytes())
    changed[-20] ^= 1
    image.unlink()  # the source is shared with other tests, and may be the same file
    image.write_bytes(changed)
    _, passed, said = night()
    assert not passed
    assert "benchmark bench: " in said and "bench1.png" in said


def _wait(
    condition: Callable[[], bool], process: subprocess.Popen[str], log: Path, pause: float = 0.5
) -> None:
    give_up = time.monotonic() + _PATIENCE
    while not condition():
        assert process.poll() is None, f"the UI ended: {log.read_text()}"
        assert time.monotonic() < give_up, f"waited in vain: {log.read_text()}"
        time.sleep(pause)
