"""The Dagster code location: what it shows of a recipe, and how light it is to load."""

import subprocess
import sys
from pathlib import Path

import dagster as dg
from tiny_project import Project

from sr_assets.definitions import build_defs, code_location
from sr_assets.graph import build_graph
from sr_assets.recipe.loading import load_recipe

HEAVY = (
    "torch", "torchvision", "spandrel", "accelerate", "onnx", "onnxruntime", "skimage",
    "huggingface_hub", "tensorboard",
)  # fmt: skip
DEMO_EXPERTS = ("hat", "drct", "grl", "edsr")
STUDENTS = ("paragonsr2_realtime", "paragonsr_nano")
DEMO_MODELS = ("gate", "fusion", *STUDENTS, *(f"{name}_control" for name in STUDENTS))


def test_the_demo_shows_these_assets() -> None:
    graph = build_graph(load_recipe("demo"))
    definitions = build_defs(graph)
    dg.Definitions.validate_loadable(definitions)
    keys = {key.to_user_string() for key in definitions.resolve_asset_graph().get_all_asset_keys()}
    assert keys == {
        *("bronze/images", "bronze/benchmarks", "bronze/overlap"),
        *("silver/patches", "gold/pairs"),
        *(
            f"expert/{e}/{w}"
            for e in DEMO_EXPERTS
            for w in ("weights", "cache", "evaluation", "cost")
        ),
        *(
            f"model/{m}/{w}"
            for m in DEMO_MODELS
            for w in ("checkpoint", "evaluation", "cost", "export")
        ),
        "model/fusion/cache",
        *(f"model/{m}/release" for m in ("gate", "fusion", *STUDENTS)),
        *("evaluation/baselines", "evaluation/leaderboard"),
    }
    assert all(node.description and node.group_name for node in _nodes(definitions))


def test_the_location_adds_what_runs_by_itself() -> None:
    graph = build_graph(load_recipe("demo"))
    definitions = code_location(graph, "demo", running=False)
    dg.Definitions.validate_loadable(definitions)
    repository = definitions.get_repository_def()
    assert {s.name for s in repository.sensor_defs} == {
        *("keep_fresh", "inbox", "hub_revisions", "tell_failures")
    }
    assert [s.name for s in repository.schedule_defs] == ["nightly_evaluation"]
    assert {"refresh_stale", "nightly_evaluation"} <= set(repository.job_names)
    automatic = {
        key.to_user_string()
        for key in repository.asset_graph.materializable_asset_keys
        if repository.asset_graph.get(key).automation_condition is not None
    }
    assert automatic == set(graph.stages)
    nightly = repository.asset_graph.get(dg.AssetKey(["evaluation", "nightly"]))
    assert nightly.pools == {"gpu"} and not nightly.is_partitioned


def test_edges_read_only_the_partitions_that_count(empty: Project) -> None:
    assets = build_defs(build_graph(load_recipe(empty.recipe_file))).resolve_asset_graph()

    def edge(child: str, parent: str) -> dg.PartitionMapping | None:
        node = assets.get(dg.AssetKey(child.split("/")))
        return node.partition_mappings.get(dg.AssetKey(parent.split("/")))

    photos, bench = (dg.SpecificPartitionsPartitionMapping([k]) for k in ("photos", "bench"))
    assert edge("model/alone/checkpoint", "gold/pairs") == photos
    assert edge("model/student/checkpoint", "model/fusion/cache") == photos
    assert edge("evaluation/leaderboard", "model/alone/evaluation") == bench
    assert edge("expert/edsr/cache", "gold/pairs") == dg.IdentityPartitionMapping()
    assert edge("model/alone/evaluation", "bronze/images") == dg.IdentityPartitionMapping()
    parents = assets.get(dg.AssetKey(["model", "alone", "checkpoint"])).parent_keys
    assert {key.to_user_string() for key in parents} == {"gold/pairs", "silver/patches"}


def test_loading_the_code_location_imports_nothing_heavy(tmp_path: Path) -> None:
    script = (
        "import sys\nimport sr_assets.definitions as d\nd.defs()\n"
        f"print([m for m in {HEAVY} if m in sys.modules])"
    )
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert list(tmp_path.iterdir()) == []


def _nodes(definitions: dg.Definitions) -> list[dg.AssetSpec]:
    return list(definitions.resolve_all_asset_specs())
