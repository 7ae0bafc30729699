"""How long `srd status` takes on a large project: 100 datasets x 4 experts, two models.

    python benchmarks/status_speed.py [DATASETS] [EXPERTS]

The outputs are made up: one marker each, with the address that the real graph gives them, and one
materialisation in Dagster on SQLite, as if everything had been built and were fresh. Then the real
command runs on it, and its parts are timed in this process.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

_REPEATS = 3
_LIMIT = 5.0  # seconds that a person waits without wondering
_PARTS = """
import sys
import time
last = time.perf_counter()
def part(name):
    global last
    now = time.perf_counter()
    print(f"  {now - last:6.2f} s  {name}")
    last = now
import dagster
part("import dagster")
from sr_assets.graph import build_graph
from sr_assets.recipe.loading import load_recipe
graph = build_graph(load_recipe(sys.argv[1]))
part("recipe and graph")
from sr_assets.home import open_instance
from sr_assets.lineage.code_version import code_version
from sr_assets.lineage.plan import survey
from sr_assets.lineage.records import current_addresses
with open_instance() as instance:
    part("open the Dagster instance")
    for stage in graph.stages.values():
        code_version(stage)
    part("digests of the source")
    current_addresses(instance, graph)
    part("latest materialisations")
    survey(graph, instance)
    part("the whole survey, with the digests at hand")
"""


def main(datasets: int = 100, experts: int = 4) -> None:
    """Prints the seconds of the command and of its parts."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["DAGSTER_HOME"] = str(folder / "home")
        os.chdir(folder)
        recipe_file = _write_project(folder, datasets, experts)
        started = time.monotonic()
        outputs = _make_up(recipe_file)
        took = time.monotonic() - started
        print(f"{datasets} datasets x {experts} experts: {outputs} outputs, in {took:.0f} s")
        _time_command(recipe_file, "fresh")
        _print_parts(recipe_file)
        slowest = _time_command(_with_another_seed(recipe_file), "stale")
        headline = {"name": "status_speed", "ratio": round(_LIMIT / slowest, 2)}
        print(json.dumps({**headline, "peer": f"{_LIMIT} s", "unit": "s", "repeats": _REPEATS}))


def _write_project(folder: Path, datasets: int, experts: int) -> Path:
    """A recipe whose sources are there; nothing ever opens them."""

    def source(name: str) -> dict[str, Any]:
        images = folder / "images" / name
        images.mkdir(parents=True)
        (images / "one.png").write_bytes(b"never opened")
        return {"source": {"kind": "folder", "path": str(images)}}

    weights = folder / "weights.pth"
    weights.write_bytes(b"never opened")
    recipe = {
        "name": "large",
        "datasets": {f"set{n:03}": source(f"set{n:03}") for n in range(datasets)},
        "benchmarks": {"bench": source("bench")},
        "experts": {
            f"expert{n}": {"source": {"kind": "file", "path": str(weights)}} for n in range(experts)
        },
        "models": {
            "fusion": {"kind": "gate"},
            "student": {
                "kind": "student",
                "network": {"architecture": "Compact", "args": {"num_feat": 16, "num_conv": 1}},
            },
        },
    }
    file = folder / "large.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return file


def _with_another_seed(recipe_file: Path) -> Path:
    """The same recipe with another seed: nearly everything is stale, and has to say why."""
    recipe = yaml.safe_load(recipe_file.read_text())
    changed = recipe_file.with_name("changed.yaml")
    changed.write_text(yaml.safe_dump({**recipe, "seed": 1}, sort_keys=False))
    return changed


def _make_up(recipe_file: Path) -> int:
    """Writes the marker of every output and tells Dagster of it; returns how many."""
    import dagster as dg

    from sr_assets.graph import build_graph
    from sr_assets.home import open_instance
    from sr_assets.lineage.build import register_partitions
    from sr_assets.lineage.code_version import code_version, module_digests
    from sr_assets.lineage.records import address_of, asset_key
    from sr_assets.recipe.loading import load_recipe
    from sr_assets.storage import MARKER, Output

    graph = build_graph(load_recipe(recipe_file))
    versions = {key: code_version(stage) for key, stage in graph.stages.items()}
    made: dict[Any, Output] = {}
    with open_instance() as instance:
        register_partitions(graph, instance)
        for ref in graph.refs():
            stage = graph.stages[ref.asset]
            inputs = {parent: made[parent] for parent in graph.inputs(ref)}
            outside = dict(stage.outside(ref.partition))
            version = versions[ref.asset]
            address = address_of(stage, ref, version, inputs, outside)
            path = graph.folder(ref) / address
            content = str(ref).encode()
            marker = {
                "asset": ref.asset,
                "partition": ref.partition,
                "data_version": address,
                "code_version": version,
                "settings": {**stage.settings, **stage.partition_settings(ref.partition)},
                "inputs": {str(r): output.data_version for r, output in inputs.items()},
                "modules": module_digests(stage.modules_of(ref.partition)),
                "outside": outside,
                "metadata": {},
                "seconds": 0.0,
                "files": {"content": {"sha256": "", "size": len(content), "content": True}},
            }
            path.mkdir(parents=True)
            (path / "content").write_bytes(content)
            (path / MARKER).write_text(json.dumps(marker))
            made[ref] = Output(path, address, marker)
            instance.report_runless_asset_event(
                dg.AssetMaterialization(
                    asset_key(ref),
                    partition=ref.partition,
                    metadata={"address": address, "path": dg.MetadataValue.path(str(path))},
                    tags={"dagster/data_version": address, "dagster/code_version": version},
                )
            )
    return len(made)


def _time_command(recipe_file: Path, state: str) -> float:
    """Median seconds of `srd status`, in which most outputs are in one state."""
    srd = str(Path(sys.executable).with_name("srd"))
    seconds = []
    for _ in range(_REPEATS):
        started = time.monotonic()
        done = subprocess.run(
            [srd, "status", "--json", "--recipe", str(recipe_file)], capture_output=True, check=True
        )
        seconds.append(time.monotonic() - started)
    rows = json.loads(done.stdout)
    count = sum(row["state"] == state for row in rows)
    assert count > len(rows) // 2, f"only {count} of {len(rows)} are {state}"
    median = statistics.median(seconds)
    print(f"srd status, {count} of {len(rows)} {state}: median {median:.2f} s of {_REPEATS}")
    return median


def _print_parts(recipe_file: Path) -> None:
    """The same work in a new process, part by part."""
    subprocess.run([sys.executable, "-c", _PARTS, str(recipe_file)], check=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
