"""Tells of failed runs: one line to a webhook, by mail, or both, as the environment says.

Where nothing is set, nothing is told; which runs fail and why is in the UI all the same.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

import dagster as dg

from sr_assets.automation.names import ADDRESS_VARIABLE

SENSOR = "tell_failures"
_EVERY = 30  # seconds
_WITHIN = 10.0  # seconds for a server to answer
_LONGEST = 500  # characters


class _NoRedirect(HTTPRedirectHandler):
    """A redirection is the answer, as an error that names its number."""

    def redirect_request(self, *args: Any, **named: Any) -> None:
        """Never: there is nowhere else to go."""


class _UnusableURL(ValueError):  # noqa: N818 - told, not raised further
    """The message may be shown."""


@dataclass(frozen=True)
class Outlets:
    """Where failures are told."""

    webhook: str | None
    """URL that {"text": line} is posted to."""
    mail_to: str | None
    mail_from: str
    smtp: str
    """host or host:port of the mail server."""

    def __bool__(self) -> bool:
        return bool(self.webhook or self.mail_to)


def outlets_of(webhook_variable: str) -> Outlets:
    """What the environment names: the webhook, SRD_MAIL_TO, SRD_MAIL_FROM and SRD_SMTP."""
    to = os.environ.get("SRD_MAIL_TO") or None
    return Outlets(
        webhook=os.environ.get(webhook_variable) or None,
        mail_to=to,
        mail_from=os.environ.get("SRD_MAIL_FROM") or to or "",
        smtp=os.environ.get("SRD_SMTP") or "localhost",
    )


def line_of(run: dg.DagsterRun, reasons: Iterable[str], recipe: str, address: str | None) -> str:
    """One line: what failed, why, and where to look.

    Args:
        run: that failed.
        reasons: of its failed steps.
        recipe: name of the recipe.
        address: of the UI, where it is known.
    """
    why = "; ".join(dict.fromkeys(reasons)) or "the run ended before its steps did"
    short = " ".join(why.split())
    short = short if len(short) <= _LONGEST else f"{short[: _LONGEST - 3]}..."
    where = f"{address}/runs/{run.run_id}" if address else f"run {run.run_id} in the UI"
    return f"SR Distillery, recipe {recipe}: {short} (look at {where})"


def tell(line: str, outlets: Outlets) -> list[str]:
    """Sends the line to every outlet; what could not be sent, a reason each.

    No reason quotes the URL of the webhook, which is a secret.
    """
    problems = []
    url = outlets.webhook
    if url and (why := _sent(lambda: _post(url, line))):
        problems.append(f"the webhook did not take it: {why}")
    if outlets.mail_to and (why := _sent(lambda: _mail(line, outlets))):
        problems.append(f"mail server {outlets.smtp} did not take it: {why}")
    return problems


def _sent(send: Callable[[], None]) -> str:
    """Why sending failed; empty where it did not.

    On a thread of its own: the time-outs of sockets are for each piece of an answer, and a server
    that drips would hold the sensor.
    """
    why: list[str] = []

    def work() -> None:
        try:
            send()
        except HTTPError as error:
            why.append(f"HTTP {error.code}")
        except _UnusableURL as error:
            why.append(str(error))
        except (OSError, ValueError, HTTPException) as error:
            reason = getattr(error, "strerror", None) or getattr(error, "reason", None)
            why.append(f"{type(error).__name__}{f' ({reason})' if reason else ''}")

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(_WITHIN)
    return f"no answer within {_WITHIN:g} s" if thread.is_alive() else "".join(why)


def failure_sensor(recipe: str, webhook_variable: str, running: bool) -> dg.SensorDefinition:
    """The sensor that sees every failed run of the code location."""
    outlets = outlets_of(webhook_variable)
    status = (
        dg.DefaultSensorStatus.RUNNING if running and outlets else dg.DefaultSensorStatus.STOPPED
    )

    @dg.run_failure_sensor(
        name=SENSOR,
        description="Tells of failed runs by webhook or mail; docs/automation.md says how.",
        default_status=status,
        minimum_interval_seconds=_EVERY,
    )
    def sensor(context: dg.RunFailureSensorContext) -> dg.SkipReason | None:
        outlets = outlets_of(webhook_variable)
        if not outlets:
            return dg.SkipReason(f"neither {webhook_variable} nor SRD_MAIL_TO is set")
        reasons = [_reason(event) for event in context.get_step_failure_events()]
        reasons = reasons or _reasons_of_run(context.failure_event)
        line = line_of(context.dagster_run, reasons, recipe, os.environ.get(ADDRESS_VARIABLE))
        for problem in tell(line, outlets):
            context.log.error(problem)
        return None

    return sensor


def _reason(event: dg.DagsterEvent) -> str:
    """Why a step failed: our own words where the failure is ours, else the innermost error."""
    data = event.step_failure_data
    if data.user_failure_data is not None and data.user_failure_data.description:
        return data.user_failure_data.description
    return f"{event.step_key}: {_innermost(data.error) or 'no reason was recorded'}"


def _reasons_of_run(event: dg.DagsterEvent) -> list[str]:
    """Why a run failed before its steps did, such as a code location that did not load."""
    data = event.event_specific_data  # None where nothing but a message is known
    reason = _innermost(getattr(data, "error", None)) or event.message
    return [reason] if reason else []


def _innermost(error: Any) -> str:
    """The last line of what caused a recorded error in the end; empty where nothing is known."""
    while error is not None and error.cause is not None:
        error = error.cause
    lines = error.message.strip().splitlines() if error is not None else []
    return lines[-1] if lines else ""


def _post(url: str, line: str) -> None:
    if not url.startswith(("http://", "https://")):
        raise _UnusableURL("its URL begins with neither http:// nor https://")
    body = json.dumps({"text": line}).encode()
    request = Request(url, body, {"Content-Type": "application/json"})  # noqa: S310
    # A redirected POST would arrive as a GET without the message.
    with build_opener(_NoRedirect()).open(request, timeout=_WITHIN):
        pass


def _mail(line: str, outlets: Outlets) -> None:
    import smtplib
    from email.message import EmailMessage

    message = EmailMessage()
    message["Subject"] = "SR Distillery: a run failed"
    message["From"], message["To"] = outlets.mail_from, outlets.mail_to
    message.set_content(line)
    host, _, port = outlets.smtp.partition(":")
    with smtplib.SMTP(host, int(port or 25), timeout=_WITHIN) as server:
        server.send_message(message)
