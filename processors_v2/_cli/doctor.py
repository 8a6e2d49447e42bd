"""``doctor``: whether everything works, and what to do where it does not."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from processors_v2._cli import connect
from processors_v2._cli.connect import Session
from processors_v2._cli.exits import Exit
from processors_v2._doctor.findings import Finding, is_green, problem_of
from processors_v2._errors import ConfigurationError

_STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}


def doctor(
    session: Session,
    project: Annotated[
        Path, typer.Option("--project", metavar="DIR", help="Where folders processors_v2 of yours are looked for.")
    ] = Path(),
) -> int:
    """Check URL, key, schema, rights, version and more, and say what to do about each problem.

    PostgREST is asked, with SUPABASE_URL and the secret key; Postgres as well, where SUPABASE_DB_URL is set.

    Exit code 0: no problem; 1: some.
    """
    if not project.is_dir():
        raise typer.BadParameter(f"{project} is no folder", param_hint="--project")
    findings = _examined(session, project)
    green = is_green(findings)
    answer = {"ok": green, "findings": [asdict(finding) for finding in findings]}
    session.output.answer(answer, _told(findings))
    return Exit.OK if green else Exit.NO


def _examined(session: Session, project: Path) -> list[Finding]:
    # supabase takes a while to import, for which --help does not wait.
    import supabase  # noqa: PLC0415

    from processors_v2._doctor.examination import examine  # noqa: PLC0415
    from processors_v2._transport.environment import project_from_env  # noqa: PLC0415

    database_url = connect.database_url()
    client, problems = None, []
    if not database_url or connect.project_url():
        try:
            client = supabase.create_client(*project_from_env())
        except ConfigurationError as error:
            problems = [problem_of("url" if "SUPABASE_URL" in error.message else "key", error)]
    return [*problems, *examine(client, database_url=database_url, folder=project, timeout=session.timeout)]


def _told(findings: list[Finding]) -> Table:
    table = Table.grid()
    table.add_column(width=8)
    table.add_column(width=11)
    # On a narrow terminal it goes on below itself, and not below the rest.
    table.add_column(overflow="fold")
    for finding in findings:
        table.add_row(Text(finding.level, _STYLES[finding.level]), Text(finding.check), Text(finding.message))
        if finding.remedy:
            table.add_row("", "", Text(finding.remedy))
    return table
