"""The asset `evaluation/nightly`, its check and its schedule: is what was measured still so?

Measuring and comparing are `nights.py`.
"""

import json
from typing import Any

import dagster as dg
from upath import UPath

from sr_assets.automation.nights import TOLERANCE, Night, Row, measure_night, night_from_json
from sr_assets.automation.nights import measured_refs as refs_of
from sr_assets.graph import Graph
from sr_assets.lineage.code_version import digest_of
from sr_assets.lineage.progress import shown
from sr_assets.lineage.records import asset_key
from sr_assets.lineage.stage import Ref
from sr_assets.report.markdown import table

KEY = "evaluation/nightly"
CHECK = "nightly_drift"
SCHEDULE = "nightly_evaluation"
_NIGHTS = 50  # records that are searched for the last night in this root
_NAMED = 5  # problems in the description of the check


def nightly_asset(graph: Graph) -> dg.AssetsDefinition:
    """The asset that measures every row of the recipe again; one materialisation a night."""
    key = asset_key(Ref(KEY))

    @dg.asset(
        key=key,
        description="Every model, expert and control measured again on every benchmark, from the "
        "current checkpoints, and compared with the last night.",
        group_name="leaderboard",
        kinds={"pytorch"},
        deps=[asset_key(Ref(asset)) for asset in dict.fromkeys(r.asset for r in refs_of(graph))],
        pool="gpu",
        check_specs=[
            dg.AssetCheckSpec(
                CHECK,
                asset=key,
                description=f"No PSNR-Y moved by more than {TOLERANCE} dB without a change of what "
                "it is made from, and no benchmark image changed, went or came.",
            )
        ],
    )
    def asset(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        last = last_night(graph, context.instance)
        night = measure_night(graph, context.instance, last, shown(context.log.info))
        if not night.rows and not night.problems:
            raise dg.Failure(
                f"{KEY}: nothing to measure yet ({'; '.join(night.left_out[:3])}): run `srd build`",
                allow_retries=False,
            )
        run = context.instance.get_run_stats(context.run.run_id)
        path = graph.root / "nights" / f"{_stamp(run.start_time)}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(night.to_json(), indent=1))
        return _result(night, str(path))

    return asset


def nightly_schedule(graph: Graph, running: bool) -> dg.ScheduleDefinition:
    """The schedule `nightly_evaluation`, when the recipe says, and the job of that name."""
    status = dg.DefaultScheduleStatus.RUNNING if running else dg.DefaultScheduleStatus.STOPPED
    return dg.ScheduleDefinition(
        name=SCHEDULE,
        job=dg.define_asset_job(
            SCHEDULE,
            selection=dg.AssetSelection.assets(asset_key(Ref(KEY))),
            description="Measures everything again and compares it with the last night.",
        ),
        cron_schedule=graph.recipe.automation.nightly,
        execution_timezone=graph.recipe.automation.timezone,
        default_status=status,
        description="Measures every row again on every benchmark; fails a check when one moved.",
    )


def last_night(graph: Graph, instance: dg.DagsterInstance) -> Night | None:
    """The newest night that was measured in this graph's root and whose record is still there."""
    folder = graph.root / "nights"
    page = instance.fetch_materializations(asset_key(Ref(KEY)), limit=_NIGHTS)
    for record in page.records:
        metadata = record.asset_materialization.metadata if record.asset_materialization else {}
        path = UPath(str(metadata["record"].value)) if "record" in metadata else None
        if path is not None and path.parent == folder and path.exists():
            return night_from_json(json.loads(path.read_bytes()))
    return None


def _stamp(seconds: float | None) -> str:
    from datetime import UTC, datetime

    moment = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return moment.strftime("%Y-%m-%dT%H%M%S.%f")


def _result(night: Night, path: str) -> dg.MaterializeResult:
    numbers: dict[str, Any] = {
        f"psnr_y {row.row} on {row.benchmark}": round(row.psnr_y, 4)
        for row in night.rows
        if row.psnr_y is not None
    }
    passed = not night.problems
    named = "; ".join(night.problems[:_NAMED])
    more = len(night.problems) - _NAMED
    content = {**night.to_json(), "moved": None}
    return dg.MaterializeResult(
        data_version=dg.DataVersion(digest_of(content)),
        metadata={
            "table": dg.MetadataValue.md(_table(night)),
            **({"problems": dg.MetadataValue.md(_list(night.problems))} if not passed else {}),
            **({"left out": dg.MetadataValue.md(_list(night.left_out))} if night.left_out else {}),
            **numbers,
            "largest_move_db": round(night.moved, 5),
            "problems_count": len(night.problems),
            "record": dg.MetadataValue.path(path),
        },
        check_results=[
            dg.AssetCheckResult(
                check_name=CHECK,
                passed=passed,
                description=(
                    f"{len(night.rows)} rows are as they were"
                    if passed
                    else named + (f"; and {more} more" if more > 0 else "")
                ),
                metadata={"largest_move_db": round(night.moved, 5)},
            )
        ],
    )


def _table(night: Night) -> str:
    def cells(row: Row) -> tuple[str, ...]:
        psnr = "identical" if row.psnr_y is None else f"{row.psnr_y:.3f}"
        return row.row, row.benchmark, psnr, str(len(row.images))

    return table(("row", "benchmark", "PSNR-Y (dB)", "images"), map(cells, night.rows))


def _list(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
