"""A run whose recipe could not be loaded says nothing of its output, which is asked for again."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import numpy as np
import pytest
from dagster._core.definitions.selector import JobSubsetSelector
from dagster._core.test_utils import create_test_daemon_workspace_context, poll_for_finished_run
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import ModuleTarget
from PIL import Image

from sr_assets.automation.freshness import FIRST_WAIT
from sr_assets.definitions import code_location
from sr_assets.graph import build_graph
from sr_assets.recipe.loading import load_recipe

_KEY = dg.AssetKey(["bronze", "images"])
_RECIPE = "name: r\ndatasets: {d: {source: {kind: folder, path: images}}}\n"


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "images" / "a.png")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(_RECIPE)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SRD_RECIPE", str(recipe))
    monkeypatch.chdir(tmp_path)
    return recipe


@pytest.fixture
def instance(recipe: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.get() as found:
        yield found


@pytest.mark.slow
def test_a_run_that_cannot_load_the_recipe_is_no_failure_of_its_output(
    recipe: Path, instance: dg.DagsterInstance
) -> None:
    location = code_location(build_graph(load_recipe(recipe)), str(recipe), False)
    cursor = None

    def asked(at: datetime) -> list[str]:
        nonlocal cursor
        result = dg.evaluate_automation_conditions(
            location, instance, cursor=cursor, evaluation_time=at
        )
        cursor = result.cursor
        return sorted(result.get_requested_partitions(_KEY))

    target = ModuleTarget(
        module_name="sr_assets.definitions",
        attribute=None,
        working_directory=None,
        location_name="sr_assets",
    )
    with create_test_daemon_workspace_context(target, instance) as context:
        assert asked(datetime.now(UTC)) == ["d"]
        run_id = _create(context, instance)
        recipe.write_text("name: [broken\n")  # somebody edits it, and is half way through
        instance.launch_run(run_id, context.create_request_context())
        run = poll_for_finished_run(instance, run_id, timeout=600)
        recipe.write_text(_RECIPE)
        assert run.status is dg.DagsterRunStatus.FAILURE
        ended = datetime.fromtimestamp(instance.get_run_record_by_id(run_id).end_time, UTC)
        assert asked(ended + timedelta(seconds=FIRST_WAIT / 2)) == []
        later = ended + timedelta(seconds=FIRST_WAIT + 1)
        assert asked(later) == ["d"]
        assert asked(later) == []


def _create(context: WorkspaceProcessContext, instance: dg.DagsterInstance) -> str:
    """A run of bronze, as the daemon makes it from a request."""
    location = context.create_request_context().get_code_location("sr_assets")
    (repository,) = location.get_repositories().values()
    job = location.get_job(
        JobSubsetSelector(
            location_name="sr_assets",
            repository_name=repository.name,
            job_name="__ASSET_JOB",
            op_selection=None,
            asset_selection=[_KEY],
            asset_check_selection=None,
        )
    )
    plan = location.get_execution_plan(job, {}, None, None, instance)
    run = instance.create_run(
        job_name=job.name,
        run_id=None,
        run_config={},
        resolved_op_selection=None,
        op_selection=None,
        asset_selection=frozenset({_KEY}),
        asset_check_selection=None,
        status=dg.DagsterRunStatus.NOT_STARTED,
        step_keys_to_execute=None,
        tags={"dagster/partition": "d"},
        root_run_id=None,
        parent_run_id=None,
        job_snapshot=job.job_snapshot,
        execution_plan_snapshot=plan.execution_plan_snapshot,
        parent_job_snapshot=job.parent_job_snapshot,
        remote_job_origin=job.get_remote_origin(),
        job_code_origin=job.get_python_origin(),
        asset_graph=repository.asset_graph,
    )
    return run.run_id
