"""``init``: the migrations in a Supabase project of the user's."""

import datetime as dt
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from processors_v2._cli.connect import Session
from processors_v2._cli.exits import Exit
from processors_v2._install import config, edge, folders, migrations
from processors_v2._local.project import function_settings

_CONFIG = {
    "none": "has all that is needed",
    "changed": "{}changed, what is needed was added",
    "created": "{}created, with krai_core among the schemas of the API",
}
_FOLDER = "supabase/migrations"
# Times are whole seconds, three at most.
_LONGEST_WAIT = 4.0
_CHANGED = (
    "Nothing was added. Where they are those of an earlier version, or were edited, stage-tracker init --update adds "
    "our text as further files, to be run after them; each can be run at any time."
)
_NEXT = (
    "Next: supabase db push (--remote for a linked project), then stage-tracker doctor. "
    "A hosted project has to be told of the schema as well: "
    "Project Settings > Data API > Exposed schemas: krai_core."
)


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

    They get times of their own, later than all that is there. In supabase/config.toml krai_core is added to the API.

    A migration that is there is never changed. Run again, it adds what is new.
    """
    found = folders.find_project(Path.cwd(), project)
    plan = migrations.make_plan(found.migrations, dt.datetime.now(dt.UTC), update=update)
    _let_pass(plan.not_before)
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
        "functions": _named_functions(files) if files else None,
    }
    session.output.answer(done, *_told(done, update=update))
    left = [*(plan.changed if not update else []), *(files.changed if files else [])]
    return Exit.NO if left else Exit.OK


def _let_pass(moment: dt.datetime) -> None:
    """Wait the second or two after which no file has a time that is yet to come, unless the project itself has one."""
    left = (moment - dt.datetime.now(dt.UTC)).total_seconds()
    if 0 < left <= _LONGEST_WAIT:
        time.sleep(left)


def _named(plan: Any) -> dict[str, list[str]]:
    return {
        "present": plan.present,
        "changed": plan.changed,
        "added": [name for name, _ in plan.added],
        "reviews": [f"git diff --no-index {_FOLDER}/{old} {_FOLDER}/{new}" for old, new in plan.reviews],
    }


def _named_functions(files: Any) -> dict[str, list[str]]:
    return asdict(files) | {"added": [name for name, _ in files.added]}


def _told(done: dict[str, Any], *, update: bool) -> Iterator[str]:
    would = "would be " if done["dry_run"] else ""
    if done["is_new"]:
        yield f"No Supabase project here: supabase/ {would}made in {done['project']}."
    yield from _told_of_migrations(done["migrations"], would, update=update)
    yield f"supabase/config.toml: {_CONFIG[done['config']].format(would)}"
    yield from _told_of_functions(done["functions"] or {}, would)
    if done["migrations"]["added"] and not done["dry_run"]:
        yield _NEXT


def _told_of_migrations(files: dict[str, list[str]], would: str, *, update: bool) -> Iterator[str]:
    if added := files["added"]:
        yield f"supabase/migrations: {len(added)} file{'s' * (len(added) > 1)} {would}added: {', '.join(added)}"
    if files["present"]:
        be = "is" if len(files["present"]) == 1 else "are"
        yield f"supabase/migrations: {', '.join(files['present'])} {be} up to date"
    if files["changed"] and not update:
        yield from (f"supabase/migrations/{name} has another text than ours" for name in files["changed"])
        yield _CHANGED
    if files["reviews"] and not would:
        yield "To see what is new:"
        yield from (f"  {command}" for command in files["reviews"])


def _told_of_functions(files: dict[str, list[str]], would: str) -> Iterator[str]:
    yield from (f"supabase/functions/{name} {would}added" for name in files.get("added", []))
    for name in files.get("changed", []):
        yield f"supabase/functions/{name} has another text than ours and stays: delete it to get ours"
