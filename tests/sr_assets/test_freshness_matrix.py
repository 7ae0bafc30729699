"""The freshness matrix: a change against the exact outputs that must run again, level by level."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest
from matrix_project import (
    MatrixProject,
    copy_code,
    make_sources,
    matrix_recipe,
    write_picture,
    write_weights,
)
from test_lineage import World

from sr_assets.definitions import build_defs
from sr_assets.graph import Graph
from sr_assets.lineage import code_version, runs
from sr_assets.lineage.records import address_of, asset_key, current_output
from sr_assets.lineage.stage import Ref
from sr_assets.output_folder import OutputFolder
from sr_assets.report import page
from sr_assets.storage import Output

Change = Callable[[MatrixProject], None]
Levels = list[set[str]]


@pytest.fixture(scope="module")
def pristine(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, list[dg.AssetMaterialization]]:
    """The folder that holds `live`, `built` and `code`, and Dagster's records of `built`."""
    base = tmp_path_factory.mktemp("matrix")
    live = base / "live"
    make_sources(live)
    copy_code(base / "code")
    with dg.DagsterInstance.ephemeral(str(base)) as instance, pytest.MonkeyPatch.context() as patch:
        project = MatrixProject(live, base / "code", matrix_recipe(live), instance, patch)
        patch.setattr(code_version, "_source_path", project.source_path)
        levels = project.rerun()
        assert sorted(project.ran) == sorted(name for level in levels for name in level)
        records = project.records()
    live.rename(base / "built")
    return base, records


@pytest.fixture
def project(
    pristine: tuple[Path, list[dg.AssetMaterialization]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[MatrixProject]:
    """The built project where it was built, as it was."""
    base, records = pristine
    live = base / "live"
    shutil.copytree(base / "built", live)
    with dg.DagsterInstance.ephemeral(str(base)) as instance:
        for record in records:
            instance.report_runless_asset_event(record)
        project = MatrixProject(live, base / "code", matrix_recipe(live), instance, monkeypatch)
        monkeypatch.setattr(code_version, "_source_path", project.source_path)
        yield project
    shutil.rmtree(live)


LEADERBOARD = "evaluation/leaderboard"
RELEASES = {"model/fusion/release", "model/student/release"}
#: What follows when a model has been trained anew.
ALONE = [{f"model/alone/{what}" for what in ("cost", "evaluation[bench]", "export")}, {LEADERBOARD}]
STUDENT = [
    {f"model/student/{what}" for what in ("cost", "evaluation[bench]", "export")},
    {LEADERBOARD, "model/student/release"},
]
FUSION = [
    {
        f"model/fusion/{what}"
        for what in ("cache[photos]", "cache[other]", "cost", "evaluation[bench]", "export")
    },
    {"model/student/checkpoint", "model/fusion/release"},
    *STUDENT,
]
#: What follows when the images of a dataset that no model trains on have changed.
OTHER = [
    {"bronze/images[other]"},
    {"bronze/overlap[other]"},
    {"silver/patches[other]"},
    {"gold/pairs[other]"},
    {"expert/one/cache[other]", "expert/two/cache[other]"},
    {"model/fusion/cache[other]"},
]


def both(asset: str) -> set[str]:
    """The asset of both datasets."""
    return {f"{asset}[photos]", f"{asset}[other]"}


def setting(*path: str, to: object) -> Change:
    """Sets one field of the recipe."""

    def change(project: MatrixProject) -> None:
        section = project.recipe
        for name in path[:-1]:
            section = section.setdefault(name, {})
        assert section.get(path[-1]) != to
        section[path[-1]] = to

    return change


def code(module: str, old: str, new: str) -> Change:
    """Edits the source of a module."""
    return lambda project: project.edit(module, old, new)


def images(act: Callable[[Path], None], name: str = "other") -> Change:
    """Does something to the folder of a dataset or benchmark."""
    return lambda project: act(project.folder / "images" / name)


def rewrite(file: Path) -> None:
    """The same bytes in a new file, as a copy or a download leaves them."""
    data = file.read_bytes()
    file.unlink()
    file.write_bytes(data)


def touch(file: Path) -> None:
    status = file.stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))


def add_dataset(project: MatrixProject) -> None:
    for seed in (31, 33):
        write_picture(project.folder / "images" / "new" / f"{seed}.png", seed)
    source = {"kind": "folder", "path": str(project.folder / "images" / "new")}
    project.recipe["datasets"]["new"] = {"source": source, "training": False}


def add_benchmark(project: MatrixProject) -> None:
    write_picture(project.folder / "images" / "more" / "32.png", 32)
    source = {"kind": "folder", "path": str(project.folder / "images" / "more")}
    project.recipe["benchmarks"]["more"] = {"source": source}


def truncate(project: MatrixProject) -> None:
    output = project.path("gold/pairs[photos]")
    file = max((f for f in output.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1])


def edit_template(project: MatrixProject) -> None:
    templates = project.folder / "templates"
    shutil.copytree(page._TEMPLATES, templates)
    with (templates / "report.css").open("a") as file:
        file.write("body { margin: 0 }")
    project.patch.setattr(page, "_TEMPLATES", templates)


def move_root(project: MatrixProject) -> None:
    moved = project.folder / "moved"
    (project.folder / "outputs").rename(moved)
    project.recipe["root"] = str(moved)


ROWS: dict[str, tuple[Change, Levels]] = {
    # ---------------------------------------------------- fields of the recipe
    "compute": (setting("compute", to={"device": "auto", "workers": 2}), []),
    "an expert's batch": (setting("experts", "one", "batch", to=3), []),
    "intervals of logs": (setting("models", "alone", "train", "log_every", to=2), []),
    "intervals of checkpoints": (setting("models", "alone", "train", "checkpoint_every", to=1), []),
    "the project's name": (setting("name", to="renamed"), [{LEADERBOARD}]),
    "a limit that no image meets": (
        setting("bronze", "max_megapixels", to=100.0),
        [{*both("bronze/images"), "bronze/images[bench]"}],
    ),
    "a filter that no patch meets": (
        setting("silver", "min_detail", to=1e-9),
        [both("silver/patches")],
    ),
    "an expert's licence": (
        setting("experts", "one", "licence", to="MIT"),
        [{"expert/one/weights"}, RELEASES],
    ),
    "a student's steps": (
        setting("models", "student", "train", "steps", to=3),
        [{"model/student/checkpoint"}, *STUDENT],
    ),
    "a plain model's seed": (
        setting("models", "alone", "train", "seed", to=5),
        [{"model/alone/checkpoint"}, *ALONE],
    ),
    "a model's licence": (
        setting("models", "alone", "licence", to="MIT"),
        [{"model/alone/export"}],
    ),
    "size of the crops": (setting("evaluation", "crop_size", to=32), [{LEADERBOARD}]),
    "one more model to release": (
        setting("release", "models", to=["fusion", "student", "alone"]),
        [{"model/alone/release"}],
    ),
    "one model less to release": (setting("release", "models", to=["student"]), []),
    "a dataset added": (
        add_dataset,
        [{name.replace("[other]", "[new]") for name in level} for level in OTHER],
    ),
    "a dataset removed": (lambda project: project.recipe["datasets"].pop("other"), []),
    "a benchmark added": (
        add_benchmark,
        [
            {"bronze/images[more]"},
            {
                "bronze/benchmarks",
                "expert/one/evaluation[more]",
                "expert/two/evaluation[more]",
            },
            both("bronze/overlap"),
            {
                "evaluation/baselines[more]",
                *(f"model/{name}/evaluation[more]" for name in ("fusion", "student", "alone")),
            },
            {LEADERBOARD, *RELEASES},
        ],
    ),
    # ---------------------------------------------------- files outside
    "an image added to what models train on": (
        images(lambda folder: write_picture(folder / "4.png", 4), "photos"),
        [
            {"bronze/images[photos]"},
            {"bronze/overlap[photos]"},
            {"silver/patches[photos]"},
            {"gold/pairs[photos]"},
            {"expert/one/cache[photos]", "expert/two/cache[photos]", "model/alone/checkpoint"},
            {"model/fusion/checkpoint", "evaluation/baselines[bench]", *ALONE[0]},
            *FUSION,
        ],
    ),
    "an image removed": (images(lambda folder: (folder / "11.png").unlink()), OTHER),
    "an image replaced": (images(lambda folder: write_picture(folder / "11.png", 13)), OTHER),
    "an image renamed": (
        images(lambda folder: (folder / "11.png").rename(folder / "9.png")),
        OTHER,
    ),
    "an image replaced by equal bytes": (
        images(lambda folder: rewrite(folder / "11.png")),
        OTHER[:1],
    ),
    "an image touched": (images(lambda folder: touch(folder / "11.png")), OTHER[:1]),
    "a file that is no image added": (images(lambda folder: (folder / "notes.txt").touch()), []),
    "a broken image added": (
        images(lambda folder: (folder / "x.png").write_bytes(b"no picture")),
        OTHER[:3],
    ),
    "an image added a second time": (
        images(lambda folder: shutil.copy(folder / "11.png", folder / "99.png")),
        OTHER[:3],
    ),
    "a benchmark image replaced": (
        images(lambda folder: write_picture(folder / "21.png", 22), "bench"),
        [
            {"bronze/images[bench]"},
            {
                "bronze/benchmarks",
                "expert/one/evaluation[bench]",
                "expert/two/evaluation[bench]",
            },
            both("bronze/overlap"),
            {
                "evaluation/baselines[bench]",
                *(f"model/{name}/evaluation[bench]" for name in ("fusion", "student", "alone")),
            },
            {LEADERBOARD, *RELEASES},
        ],
    ),
    "weights of an expert replaced": (
        lambda project: write_weights(project.folder / "two.safetensors", "Compact", 7),
        [
            {"expert/two/weights"},
            {*both("expert/two/cache"), "expert/two/evaluation[bench]", "expert/two/cost"},
            {"model/fusion/checkpoint", "evaluation/baselines[bench]"},
            *FUSION,
        ],
    ),
    "weights of an expert touched": (
        lambda project: touch(project.folder / "one.safetensors"),
        [{"expert/one/weights"}],
    ),
    # ---------------------------------------------------- code
    "a comment": (
        code("sr_models.degradations.bicubic", "\n_REACH = 2", "\n# why\n_REACH = 2"),
        [],
    ),
    "a docstring": (code("sr_assets.assets.gold", '"""Gold: ', '"""GOLD: '), []),
    "a line of the planner": (code("sr_assets.lineage.plan", "most: int = 3", "most: int = 4"), []),
    "a line of sr_models": (
        code("sr_models.degradations.bicubic", "\n_REACH = 2", "\n_REACH = 1 + 1"),
        [
            {*both("gold/pairs"), "expert/one/evaluation[bench]", "expert/two/evaluation[bench]"},
            {"model/alone/checkpoint", "model/fusion/checkpoint", "evaluation/baselines[bench]"},
            {
                *(f"model/{name}/evaluation[bench]" for name in ("alone", "fusion")),
                *(f"model/{name}/export" for name in ("alone", "fusion")),  # measures PSNR-Y
                "model/student/checkpoint",
            },
            {"model/student/evaluation[bench]", "model/student/export", "model/fusion/release"},
            {LEADERBOARD, "model/student/release"},
        ],
    ),
    "a line of sr_assets": (
        code("sr_assets.assets.overlap", '_LIST = "', '_UNUSED = 1\n_LIST = "'),
        [{"bronze/benchmarks"}, both("bronze/overlap"), both("silver/patches")],
    ),
    "a template of the report": (edit_template, [{LEADERBOARD}]),
    # ---------------------------------------------------- outputs and records
    "an output deleted by hand": (
        lambda project: shutil.rmtree(project.path("gold/pairs[photos]")),
        [{"gold/pairs[photos]"}],
    ),
    "an output damaged": (truncate, [{"gold/pairs[photos]"}]),
    "the root moved": (move_root, []),
    "a partition deleted in Dagster": (
        lambda project: project.instance.delete_dynamic_partition("dataset", "other"),
        [],
    ),
}


@pytest.mark.parametrize(("change", "levels"), ROWS.values(), ids=ROWS)
def test_exactly_this_runs_again(project: MatrixProject, change: Change, levels: Levels) -> None:
    change(project)
    assert project.rerun() == levels
    assert sorted(project.ran) == sorted(name for level in levels for name in level)


def test_going_back_computes_nothing(project: MatrixProject) -> None:
    levels = [{"model/student/checkpoint"}, *STUDENT]
    train = project.recipe["models"]["student"]["train"]
    train["steps"] = 3
    assert project.rerun() == levels
    project.ran.clear()
    train["steps"] = 2
    assert project.rerun() == levels
    assert project.ran == []


def test_wiped_records_are_told_again_from_what_is_there(project: MatrixProject) -> None:
    project.instance.wipe_assets([dg.AssetKey(["gold", "pairs"])])
    assert project.rerun() == [both("gold/pairs")]
    assert project.ran == []


def test_what_a_killed_run_had_finished_is_not_made_again(project: MatrixProject) -> None:
    write_picture(project.folder / "images" / "other" / "11.png", 13)

    def kill(ref: Ref) -> None:
        if ref.asset == "gold/pairs":
            raise KeyboardInterrupt

    project.act = kill
    with pytest.raises(KeyboardInterrupt):
        project.rerun()
    assert {*project.ran} == {name for level in OTHER[:3] for name in level}
    project.ran.clear()
    project.act = lambda ref: None
    assert project.rerun() == OTHER[3:]


def test_how_lr_is_made_and_lr_of_ones_own(project: MatrixProject) -> None:
    recipe = project.recipe
    for section in ("models", "experts", "benchmarks"):
        recipe[section] = {}
    del recipe["release"], recipe["datasets"]["other"]
    recipe["gold"] = {"degradation": "light"}
    project.rerun()
    recipe["gold"]["variants"] = 2
    assert project.rerun() == [{"gold/pairs[photos]"}]

    own = project.folder / "images" / "own"
    for seed in (1, 2, 3):
        write_picture(own / f"{seed}.png", seed, side=24)
    recipe["gold"] = {}
    recipe["datasets"]["photos"]["lr"] = {"kind": "folder", "path": str(own)}
    chain = [{f"{asset}[photos]"} for asset in ("bronze/images", "bronze/overlap")]
    chain += [{"silver/patches[photos]"}, {"gold/pairs[photos]"}]
    assert project.rerun() == chain
    touch(own / "2.png")
    assert project.rerun() == chain[:1]
    write_picture(own / "2.png", 5, side=24)
    assert project.rerun() == chain


# ---------------------------------------------------------------- what Dagster leaves out


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A graph over texts: raw/text[d] -> upper/text[d] -> total/text."""
    (tmp_path / "root").mkdir()
    with dg.DagsterInstance.ephemeral(str(tmp_path)) as instance:
        yield World(tmp_path / "root", instance)


def test_every_asset_gives_dagster_the_version_of_its_content(project: MatrixProject) -> None:
    versions = {
        name: status.output.data_version
        for name, status in project.statuses().items()
        if status.output is not None
    }
    told = {}
    for record in project.records():
        name = "/".join(record.asset_key.path) + (
            f"[{record.partition}]" if record.partition else ""
        )
        tags = record.tags or {}
        assert tags["dagster/data_version_is_user_provided"] == "true"
        told[name] = tags["dagster/data_version"]
    assert told == versions


def test_more_partitions_on_an_edge_than_dagster_looks_at(world: World) -> None:
    world.texts = {f"d{n}": f"text {n}" for n in range(120)}
    graph = world.graph()
    for ref in graph.refs():
        if ref.asset != "total/text":
            report_made(world, graph, ref)
    world.make(["total/text"])
    assert world.ran == ["total/text"]
    world.texts["d117"] = "another"
    assert world.behind() == {"raw/text[d117]", "upper/text[d117]", "total/text"}
    world.make()
    assert world.ran == ["raw/text[d117]", "upper/text[d117]", "total/text"]


def test_a_partition_that_is_gone_makes_what_read_it_run_again(world: World) -> None:
    world.make()
    del world.texts["b"]
    assert world.states()["total/text"] == ("stale", "no longer reads upper/text[b]")
    world.make()
    assert world.ran == ["total/text"]


def test_nothing_is_made_before_what_it_is_made_from(world: World) -> None:
    graph = world.graph()
    world.instance.add_dynamic_partitions("dataset", list(world.texts))
    job = build_defs(graph).resolve_implicit_global_asset_job_def()
    result = runs.execute(job, world.instance, [Ref("total/text")])
    assert not result.success and world.ran == []
    world.make()
    world.texts["a"] = "new"
    assert world.behind() == {"raw/text[a]", "upper/text[a]", "total/text"}


def report_made(world: World, graph: Graph, ref: Ref) -> None:
    """Puts an output where it belongs and tells Dagster, which takes less time than a run."""
    stage = graph.stages[ref.asset]
    inputs = {parent: _current(world, graph, parent) for parent in graph.inputs(ref)}
    outside, version = dict(stage.outside(ref.partition)), code_version.code_version(stage)
    folder = OutputFolder(graph.folder(ref) / address_of(stage, ref, version, inputs, outside))
    folder.write_bytes("text", str(ref).encode())
    marker = {
        "settings": dict(stage.settings), "modules": {}, "outside": outside, "metadata": {},
        "inputs": {str(r): o.data_version for r, o in inputs.items()}, "seconds": 0.0,
    }  # fmt: skip
    output = folder.commit(marker)
    world.instance.report_runless_asset_event(
        dg.AssetMaterialization(
            asset_key(ref),
            partition=ref.partition,
            metadata={
                "address": output.path.name,
                "path": dg.MetadataValue.path(str(output.path)),
            },
        )
    )


def _current(world: World, graph: Graph, ref: Ref) -> Output:
    output = current_output(world.instance, graph, ref)
    assert output is not None
    return output
