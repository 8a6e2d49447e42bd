"""The examination as a whole: what is asked, in which order, and what is left out where it could not be answered."""

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import supabase

from processors_v2._calls import upkeep
from processors_v2._calls.call import Call
from processors_v2._doctor.findings import Finding, ok, passed, problem, problem_of
from processors_v2._doctor.folders import folder_findings
from processors_v2._doctor.installation import installation_findings
from processors_v2._doctor.rest import REACH, Gateway, not_migrated, stale
from processors_v2._errors import DatabaseUnavailable, MigrationMissing, StageTrackerError
from processors_v2._sync.rest import RestTransport
from processors_v2._sync.transport import Transport
from processors_v2._transport.version import check as check_version

T = TypeVar("T")

# The first that only an answer of the database itself can bring.
_FROM_DATABASE = "objects"


def examine(
    client: supabase.Client | None = None,
    *,
    database_url: str | None = None,
    folder: Path | None = None,
    timeout: float = 10.0,
) -> list[Finding]:
    """Look at all that has to be right before a stage can be tracked.

    Args:
        client: A supabase client with the secret (or service_role) key; None: PostgREST is not looked at.
        database_url: URL of Postgres, needs the extra ``postgres``: what PostgREST does not let through is seen, too.
        folder: Folder of the project, looked through for folders ``processors_v2``; None: none is looked for.
        timeout: Seconds to wait for one answer.

    Returns:
        What was found, one for each thing that could be looked at. Nothing is raised for what is wrong.
    """
    findings = [] if client is None else _through_postgrest(client, timeout)
    if database_url is not None:
        findings = _with_direct(findings, _directly(database_url, timeout))
    return findings if folder is None else [*findings, *folder_findings(folder)]


def _through_postgrest(client: supabase.Client, timeout: float) -> list[Finding]:
    gateway = Gateway(client, timeout)
    key = gateway.key()
    if key.level == "problem":
        return [key]
    transport = RestTransport(client, timeout=timeout, retry_for=0)
    try:
        findings = [key, *_asked(transport, "schema", gateway.judge)]
    finally:
        transport.close()
    return [*findings, gateway.max_rows()] if "schema" in passed(findings) else findings


def _directly(url: str, timeout: float) -> list[Finding]:
    try:
        from processors_v2._sync.postgres import PostgresTransport  # noqa: PLC0415 - an extra
    except ImportError as error:
        return [
            problem("database", f"the database URL needs psycopg: {error}", "pip install 'stage-tracker[postgres]'")
        ]
    try:
        transport = PostgresTransport(url, timeout=timeout, retry_for=0)
    except StageTrackerError as error:
        return [problem_of("database", error)]
    try:
        return _asked(transport, "database", _judge_direct)
    finally:
        transport.close()


def _judge_direct(error: StageTrackerError) -> Finding:
    if isinstance(error, DatabaseUnavailable):
        return problem("database", error.message, REACH)
    if isinstance(error, MigrationMissing):
        return not_migrated(error)
    return problem_of("database", error)


def _asked(transport: Transport, place: str, judge: Callable[[StageTrackerError], Finding]) -> list[Finding]:
    """Ask the database for its version and its installation.

    Args:
        transport: The way to it.
        place: The check that is passed when it answers.
        judge: What it means when it does not.
    """
    try:
        found = _send(transport, upkeep.schema_version())
    except StageTrackerError as error:
        return [judge(error)]
    version = _version(found, transport.host)
    findings = [ok(place, f"{transport.host} answers for schema krai_core"), version]
    sent_at = dt.datetime.now(dt.UTC)
    try:
        installation = _send(transport, upkeep.get_installation())
    except StageTrackerError as error:
        # An older database need not be able to tell.
        if isinstance(error, MigrationMissing) and version.level == "problem":
            return findings
        return [*findings, judge(error)]
    return [*findings, *installation_findings(installation, sent_at, dt.datetime.now(dt.UTC))]


def _send(transport: Transport, call: Call[T]) -> T:
    return transport._send(call, retry=False, within=None)  # noqa: SLF001 - whatever the version


def _version(found: str, host: str) -> Finding:
    try:
        check_version(found, host, f"doctor {host}")
    except StageTrackerError as error:
        return problem_of("version", error)
    return ok("version", f"client and database have version {found}")


def _with_direct(findings: list[Finding], direct: list[Finding]) -> list[Finding]:
    """Add what Postgres itself answered, as far as PostgREST did not, and use it to judge PostgREST."""
    if not any(one.check == _FROM_DATABASE for one in direct):
        return [*findings, *direct]
    known = {one.check for one in findings if one.check != "migrations"}
    return [
        *(stale() if one.check == "migrations" else one for one in findings),
        *(one for one in direct if one.check not in known),
    ]
