"""``init``: the migrations in a Supabase project of the user's."""

import datetime as dt
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from processors_v2._cli.commands import Session
from processors_v2._cli.exits import Exit
from processors_v2._install import config, edge, folders, migrations
from processors_v2._install.folders import Project
from processors_v2._local.project import function_settings


def init(
    session: Session,
    project: Annotated[
        Path | None,
        typer.Option("--project", metavar="DIR", help="The folder that holds supabase/.", show_default=False),
    ] = None,
    update: Annotated[
        bool, typer.Option("--update", help="Add the newer text of migrations that are there with an older one.")
    ] = False,
    functions: Annotated[bool, typer.Option("--functions", help="Copy the Edge Functions, too.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
) -> int:
    """Copy the migrations into your Supabase project, ready for `supabase db push`.

    They get times of their own, later than all that is there, and krai_core is added to the schemas of the API in
    supabase/config.toml. What is there is never changed; run again, it adds what is new.
    """
    found = folders.find_project(Path.cwd(), project)
    plan = migrations.make_plan(found.migrations, dt.datetime.now(dt.UTC), update=update)
    files = edge.compare(found.functions) if functions else None
    change, settings = config.new_text(found.config, found.folder.name, function_settings() if functions else {})
    if not dry_run:
        if change != "none":
            folders.write(found.config, settings)
        for name, text in plan.added:
            folders.write(found.migrations / name, text)
        for name, text in files.added if files else []:
            folders.write(found.functions / name, text)
    done = {
        "project": str(found.folder),
        "is_new": not found.exists,
        "dry_run": dry_run,
        "config": change,
        "migrations": _named(plan),
        "functions": _named(files) if files else None,
    }
    session.output.answer(done, *_told(found, plan, files, change, dry_run=dry_run, update=update))
    left = [*(plan.changed if not update else []), *(files.changed if files else [])]
    return Exit.NO if left else Exit.OK


def _named(plan: Any) -> dict[str, list[str]]:
    return asdict(plan) | {"added": [name for name, _ in plan.added]}


def _told(
    found: Project,
    plan: migrations.Plan,
    files: edge.Files | None,
    change: config.Change,
    *,
    dry_run: bool,
    update: bool,
) -> list[str]:
    would = "would be " if dry_run else ""
    lines = [] if found.exists else [f"No Supabase project here: supabase/ {would}made in {found.folder}."]
    if plan.added:
        first, last = plan.added[0][0], plan.added[-1][0]
        lines.append(f"supabase/migrations: {len(plan.added)} files {would}added, {first} to {last}")
    if plan.present:
        lines.append(f"supabase/migrations: {len(plan.present)} files are there and stay as they are")
    if plan.changed and not update:
        lines += [
            f"supabase/migrations/{name} has another text than this version of the tracker" for name in plan.changed
        ]
        lines.append(
            "Nothing was added. If they are of an earlier version, or were edited: stage-tracker init --update adds the "
            "newer text as further files, which may run after those that were applied."
        )
    said = {"none": "has krai_core among the schemas of the API", "changed": f"{would}changed: krai_core added"}
    lines.append(
        f"supabase/config.toml: {said.get(change, f'{would}created, with krai_core among the schemas of the API')}"
    )
    if files:
        lines += [f"supabase/functions/{name} {would}added" for name, _ in files.added]
        lines += [
            f"supabase/functions/{name} is another than ours and stays: delete it to get ours" for name in files.changed
        ]
    if plan.added and not dry_run:
        lines.append(
            "Next: supabase db push, then stage-tracker doctor. A hosted project has to be told of the schema as well: "
            "Project Settings > Data API > Exposed schemas: krai_core."
        )
    return lines
