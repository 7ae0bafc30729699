"""Names that the automation shares with `srd ui`: variables of the environment, tags, jobs.

What they stand for is explained in `docs/automation.md`.
"""

from __future__ import annotations

#: `on`: sensors and the schedule run from the start. `srd ui` sets it unless it is set already;
#: elsewhere they are off until somebody switches them on in the UI.
AUTOMATION_VARIABLE = "SRD_AUTOMATION"
#: Address of the UI, for links in messages.
ADDRESS_VARIABLE = "SRD_UI_ADDRESS"
#: Tag of a run that ended unfinished because the UI was stopped.
INTERRUPTED = "srd/interrupted"
#: Job that makes everything that is stale or missing.
REFRESH = "refresh_stale"
