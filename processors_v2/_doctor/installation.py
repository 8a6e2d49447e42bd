"""What the answer of krai_core.get_installation means. No I/O."""

import datetime as dt
from collections.abc import Iterator, Mapping
from typing import Any

from processors_v2._doctor.findings import Finding, ok, problem

_AGAIN = (
    "Run the migrations again, which may be done at any time: stage-tracker sql prints them for the SQL editor; "
    "psql runs the files"
)
# PostgREST accepts a token that is this far from its own time.
_CLOCK_SECONDS = 30


def installation_findings(
    found: Mapping[str, Any], sent_at: dt.datetime, received_at: dt.datetime
) -> Iterator[Finding]:
    """Judge an installation.

    Args:
        found: The answer; what an older database does not tell is not judged.
        sent_at: When it was asked for, by the clock of this machine.
        received_at: When the answer was there.

    Yields:
        What was found, in the order in which it matters.
    """
    yield _objects(found.get("missing_objects", []))
    yield _grants(found.get("missing_grants", []))
    yield from _excess(found.get("excess_grants", []))
    yield from _leftovers(found.get("leftovers", []))
    yield _row_level_security(found.get("tables_without_rls", []))
    yield from _readers(found.get("readers_of_documents", {}))
    if "time" in found:
        yield _clock(dt.datetime.fromisoformat(found["time"]), sent_at, received_at)


def _objects(missing: list[str]) -> Finding:
    if missing:
        return problem("objects", f"missing in krai_core: {', '.join(missing)}", _AGAIN)
    return ok("objects", "functions, tables, views, triggers and the index are there")


def _grants(missing: list[str]) -> Finding:
    if missing:
        return problem(
            "grants",
            f"service_role lacks {len(missing)} right{'s' * (len(missing) > 1)} in krai_core",
            f"Run in the SQL editor: {'; '.join(missing)};",
        )
    return ok("grants", "service_role may do all that the functions need")


def _excess(excess: list[str]) -> Iterator[Finding]:
    """What a guide told to grant, for instance: nobody needs it, and the functions do not lean on its absence."""
    if excess:
        yield problem(
            "grants",
            f"anon, authenticated or PUBLIC have {len(excess)} right{'s' * (len(excess) > 1)} too many in the tracker",
            f"Run in the SQL editor: {'; '.join(excess)};",
        )


def _leftovers(leftovers: list[str]) -> Iterator[Finding]:
    if leftovers:
        yield Finding(
            "objects",
            "note",
            f"helpers of an earlier version are still in krai_core: {', '.join(leftovers)}",
            "They are no longer called. Run in the SQL editor: select krai_private.drop_leftovers();",
        )


def _row_level_security(without: list[str]) -> Finding:
    if without:
        statements = " ".join(f"alter table krai_core.{name} enable row level security;" for name in without)
        return problem(
            "rls",
            f"row level security is off for {', '.join(without)}: whoever is granted select sees all rows",
            f"Run in the SQL editor: {statements} service_role, which workers use, passes it by",
        )
    return ok("rls", "row level security is on")


def _readers(readers: Mapping[str, list[str]]) -> Iterator[Finding]:
    """Who may select documents sees stage_status with them, and so errors and metadata."""
    if not readers:
        yield ok("readers", "only the service role may select documents")
    for role, policies in readers.items():
        may = f"{role} may select krai_core.documents with stage_status, errors and metadata in it"
        if "*" in policies:
            yield problem("readers", f"{may}: all rows", f"Run in the SQL editor: {_revocation(role)}")
        elif policies:
            remedy = f"To keep stage_status to the service role: {_revocation(role)}" if role == "anon" else None
            yield Finding("readers", "note", f"{may}, as policy {', '.join(policies)} admits", remedy)
        else:
            yield ok("readers", f"{role} may select krai_core.documents, and no policy admits a row")


def _revocation(role: str) -> str:
    return f"revoke select on krai_core.documents from {role};"  # noqa: S608 - for people to run


def _clock(theirs: dt.datetime, sent_at: dt.datetime, received_at: dt.datetime) -> Finding:
    took = received_at - sent_at
    behind = (theirs - (sent_at + took / 2)).total_seconds()
    if abs(behind) - took.total_seconds() / 2 > _CLOCK_SECONDS:
        return problem(
            "clock",
            f"the clock of this machine is {abs(behind):.0f} s {'behind' if behind > 0 else 'ahead of'} the database's",
            "Have it set by a time server (timedatectl set-ntp true): tokens that are made here may be refused, and "
            "times that you give, such as --since, mean another hour there",
        )
    return ok("clock", f"the clocks of this machine and the database are within {_CLOCK_SECONDS} s")
