"""The part of a recipe that says when work starts by itself and who is told when it fails.

The sensors and the schedule themselves are `sr_assets/automation/`; nothing here changes a result.
"""

from __future__ import annotations

from zoneinfo import available_timezones

from pydantic import Field, field_validator

from sr_assets.recipe.strict import OUTSIDE_LINEAGE, Strict


class Automation(Strict):
    """When work starts by itself, and how failures are told."""

    nightly: str = Field(
        "0 3 * * *",
        description="Cron expression of the schedule `nightly_evaluation`.",
        json_schema_extra=OUTSIDE_LINEAGE,
    )
    timezone: str = Field(
        "UTC",
        description="Time zone of `nightly`, such as Europe/Berlin.",
        json_schema_extra=OUTSIDE_LINEAGE,
    )
    inbox: str = Field(
        "inbox",
        description="Folder whose new sub-folders become datasets, relative to the recipe file "
        "(of a shipped recipe: to the current folder) or absolute.",
        json_schema_extra=OUTSIDE_LINEAGE,
    )
    webhook: str = Field(
        "SRD_WEBHOOK",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Name of the environment variable that holds the URL which failures are "
        "posted to; its value is a secret and stands in no recipe.",
        json_schema_extra=OUTSIDE_LINEAGE,
    )

    @field_validator("nightly")
    @classmethod
    def _is_cron(cls, value: str) -> str:
        from dagster._utils.schedules import is_valid_cron_schedule

        if not is_valid_cron_schedule(value):
            raise ValueError(f"no cron expression: {value!r}; write one such as '0 3 * * *'")
        return value

    @field_validator("timezone")
    @classmethod
    def _is_timezone(cls, value: str) -> str:
        if value not in available_timezones():
            raise ValueError(f"no time zone: {value!r}; write one such as Europe/Berlin")
        return value
