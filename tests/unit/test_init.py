"""``stage-tracker init``: the migrations in a project of the user's."""

import datetime as dt
import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from processors_v2._install import migrations
from processors_v2._local.project import functions_folder, migration_files, migrations_folder

OURS = migration_files(migrations_folder())
TOPICS = [path.stem.partition("_")[2] for path in OURS]
LATE = "20991231235959_of_yours.sql"

Init = Callable[..., dict[str, Any]]


@pytest.fixture
def init(run: Callable[..., Any]) -> Init:
    """Run init and return what it says in JSON."""

    def call(*arguments: object, code: int = 0) -> dict[str, Any]:
        done = run("init", "--json", *arguments)
        assert done.code == code, done.err
        answer: dict[str, Any] = json.loads(done.out)
        return answer

    return call


@pytest.fixture
def project(folder: Path) -> Path:
    """A project with a migration of its own, later than today."""
    (folder / "supabase" / "migrations").mkdir(parents=True)
    (folder / "supabase" / "migrations" / LATE).write_text("select 1;")
    (folder / "supabase" / "config.toml").write_text('project_id = "mine"\n\n[api]\nschemas = ["public"]\n')
    return folder


def state_of(folder: Path) -> dict[str, bytes]:
    """Return all files below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def own(folder: Path) -> list[Path]:
    """Return the migrations of the tracker in a project."""
    return migration_files(folder / "supabase" / "migrations")[1:]


def topics_of(names: list[str]) -> list[str]:
    """Return what files are about."""
    return [name.split("_stage_tracking_")[1].removesuffix(".sql") for name in names]


def test_topics_tell_the_migrations_apart() -> None:
    """No two of our files have one topic, since a project knows them by it."""
    assert len(set(TOPICS)) == len(TOPICS)


def test_the_migrations_come_behind_those_that_are_there(init: Init, project: Path) -> None:
    """They are copied word for word, in their order, under later times than any that the project has."""
    answer = init()
    names = sorted(path.name for path in (project / "supabase" / "migrations").iterdir())
    assert names == [LATE, *answer["migrations"]["added"]]
    assert topics_of(names[1:]) == TOPICS
    assert names[1].startswith("21000101000000_")
    assert [path.read_bytes() for path in own(project)] == [path.read_bytes() for path in OURS]


def test_without_later_migrations_the_first_time_is_now(init: Init, folder: Path) -> None:
    """A project without migrations gets them from the present time on, one second after the other."""
    before = dt.datetime.now(dt.UTC)
    added = init()["migrations"]["added"]
    times = [dt.datetime.strptime(name[:14], "%Y%m%d%H%M%S").replace(tzinfo=dt.UTC) for name in added]
    assert before.replace(microsecond=0) <= times[0] <= dt.datetime.now(dt.UTC)
    assert times == [times[0] + dt.timedelta(seconds=number) for number in range(len(OURS))]
    assert (folder / "supabase" / "config.toml").exists()


def test_a_second_run_changes_nothing(init: Init, project: Path) -> None:
    """Everything is found again, by its text: no file is added, and none is touched."""
    init("--functions")
    before = state_of(project)
    answer = init("--functions")
    assert answer["migrations"]["added"] == answer["functions"]["added"] == []
    assert len(answer["migrations"]["present"]) == len(OURS)
    assert answer["config"] == "none"
    assert state_of(project) == before


@pytest.mark.parametrize("rename", ["21500101000000_stage_tracking_{}.sql", "20200101000000_{}.sql"])
def test_a_file_that_was_renamed_is_found_by_its_text(init: Init, project: Path, rename: str) -> None:
    """Another time, or even another name, does not make a file be copied again."""
    init()
    first = own(project)[0]
    first.rename(first.with_name(rename.format(TOPICS[0])))
    assert init()["migrations"]["added"] == []


def test_line_ends_of_windows_make_no_other_text(init: Init, project: Path) -> None:
    """A file that git checked out with CR LF is the same file."""
    init()
    for path in own(project):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    before = state_of(project)
    assert init()["migrations"]["added"] == []
    assert state_of(project) == before


def test_what_is_new_is_added_behind(init: Init, project: Path) -> None:
    """A file that the project lacks comes alone, with a time of its own."""
    init()
    taken = own(project)[5]
    taken.unlink()
    before = state_of(project)
    added = init()["migrations"]["added"]
    assert topics_of(added) == [TOPICS[5]]
    after = state_of(project)
    assert after.pop(f"supabase/migrations/{added[0]}") == OURS[5].read_bytes()
    assert after == before
    assert max(after) < f"supabase/migrations/{added[0]}"


def test_another_text_is_told_and_left(run: Callable[..., Any], init: Init, project: Path) -> None:
    """Where a file of ours has another text nothing is added, since the rest may build on it; the remedy is told."""
    init()
    edited, missing = own(project)[3], own(project)[5]
    edited.write_text("-- an earlier version\n")
    missing.unlink()
    before = state_of(project)
    answer = init(code=1)
    assert (answer["migrations"]["changed"], answer["migrations"]["added"]) == ([edited.name], [])
    assert state_of(project) == before
    said = run("init").out
    assert f"{edited.name} has another text than ours" in said
    assert "stage-tracker init --update" in said


def test_update_adds_the_newer_text_and_what_builds_on_it(init: Init, project: Path) -> None:
    """With --update our text comes as further files, from the first that changed to the last, and then all is there."""
    init()
    edited, missing = own(project)[3], own(project)[1]
    edited.write_text("-- an earlier version\n")
    missing.unlink()
    before = state_of(project)
    added = init("--update")["migrations"]["added"]
    assert topics_of(added) == [TOPICS[1], *TOPICS[3:]]
    after = state_of(project)
    assert {name: text for name, text in after.items() if name in before} == before
    assert init()["migrations"]["added"] == []


def test_files_that_were_copied_by_hand_are_known_by_their_names(init: Init, project: Path) -> None:
    """Who copied our folder before, and has an earlier text, is told so, too."""
    for path in OURS:
        shutil.copy(path, project / "supabase" / "migrations")
    (project / "supabase" / "migrations" / OURS[0].name).write_text("-- an earlier version\n")
    assert init(code=1)["migrations"]["changed"] == [OURS[0].name]


def test_a_dry_run_writes_nothing(run: Callable[..., Any], project: Path) -> None:
    """--dry-run says what would be done, in the same words."""
    before = state_of(project)
    said = run("init", "--dry-run", "--functions").out
    assert state_of(project) == before
    assert f"{len(OURS)} files would be added" in said
    assert "config.toml: would be changed" in said
    assert "supabase/functions/status/index.ts would be added" in said


def test_the_project_is_found_from_below(
    init: Init, run: Callable[..., Any], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the nearest one above the working directory."""
    below = project / "backend" / "jobs"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert init()["project"] == str(project)
    assert "No Supabase project" not in run("init").out


def test_a_repository_is_not_left(init: Init, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies above the repository is another project: a new one is made in the working directory."""
    repository = project / "other"
    (repository / ".git").mkdir(parents=True)
    monkeypatch.chdir(repository)
    answer = init()
    assert (answer["project"], answer["is_new"], answer["config"]) == (str(repository), True, "created")


def test_the_folder_can_be_named(run: Callable[..., Any], init: Init, folder: Path) -> None:
    """--project names the folder that holds supabase/; one that is not there is an error, and nothing is made."""
    (folder / "app").mkdir()
    assert init("--project", "app")["project"] == str(folder / "app")
    done = run("init", "--project", "ap")
    assert (done.code, done.err.splitlines()[0]) == (5, "Error: ap is no folder.")
    assert not (folder / "ap").exists()


CONFIG = """\
project_id = "mine" # the name

[api] # of PostgREST
port = 54321
# What is served.
schemas = [
    "public", # the usual
    "graphql_public",
]

[db]
major_version = 17
"""


def test_the_settings_keep_comments_and_order(init: Init, project: Path) -> None:
    """In config.toml one word is added, and every other line stays as it is."""
    path = project / "supabase" / "config.toml"
    path.write_text(CONFIG)
    assert init()["config"] == "changed"
    lines = path.read_text().splitlines()
    assert [line for line in lines if "krai_core" not in line] == CONFIG.splitlines()
    assert tomllib.loads(path.read_text())["api"]["schemas"] == ["public", "graphql_public", "krai_core"]


@pytest.mark.parametrize(
    ("text", "schemas"),
    [
        ("", ["public", "graphql_public", "krai_core"]),
        ("[db]\nport = 1\n", ["public", "graphql_public", "krai_core"]),
        ("[api]\nenabled = true\n", ["public", "graphql_public", "krai_core"]),
        ("api.schemas = ['mine']\n", ["mine", "krai_core"]),
    ],
    ids=["empty", "no api", "no schemas", "dotted"],
)
def test_settings_that_say_nothing_keep_the_defaults(init: Init, project: Path, text: str, schemas: list[str]) -> None:
    """Where no schemas are named those that the Supabase CLI serves by itself stay served."""
    path = project / "supabase" / "config.toml"
    path.write_text(text)
    init()
    assert tomllib.loads(path.read_text())["api"]["schemas"] == schemas


@pytest.mark.parametrize("text", ["[api\n", "[api]\nschemas = 'public'\n", "api = 1\n"])
def test_settings_that_cannot_be_read_are_an_error(run: Callable[..., Any], project: Path, text: str) -> None:
    """The file is named, and nothing is changed, neither there nor among the migrations."""
    (project / "supabase" / "config.toml").write_text(text)
    before = state_of(project)
    done = run("init")
    assert (done.code, "supabase/config.toml" in done.err) == (5, True)
    assert state_of(project) == before


def test_a_name_behind_every_time_is_an_error(run: Callable[..., Any], project: Path) -> None:
    """Nothing can come after a migration called 9_x.sql; it is named, and nothing is changed."""
    (project / "supabase" / "migrations" / "9_x.sql").touch()
    before = state_of(project)
    done = run("init")
    assert (done.code, "the migration 9_... sorts behind every time" in done.err) == (5, True)
    assert state_of(project) == before


def test_the_edge_functions_are_copied_with_their_settings(init: Init, project: Path) -> None:
    """--functions copies them; one that was changed there stays as it is and is told."""
    mine = project / "supabase" / "functions" / "stages" / "index.ts"
    mine.parent.mkdir(parents=True)
    mine.write_text("// mine\n")
    answer = init("--functions", code=1)["functions"]
    assert (answer["changed"], mine.read_text()) == (["stages/index.ts"], "// mine\n")
    status = "status/index.ts"
    assert (project / "supabase/functions" / status).read_bytes() == (functions_folder() / status).read_bytes()
    settings = tomllib.loads((project / "supabase" / "config.toml").read_text())
    assert settings["functions"]["status"] == {"verify_jwt": False}


def test_an_interrupted_copy_is_completed(init: Init, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is ever there in part: what was written before an error is whole, and the next run adds the rest."""
    written: list[Path] = []
    replace = Path.replace

    def failing(path: Path, target: Path) -> Path:
        written.append(target)
        if len(written) == 4:
            raise OSError(28, "No space left on device", str(target))
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(json.JSONDecodeError):
        init(code=5)
    monkeypatch.undo()
    assert [path.read_bytes() for path in own(project)] == [path.read_bytes() for path in OURS[:2]]
    monkeypatch.chdir(project)
    assert topics_of(init()["migrations"]["added"]) == TOPICS[2:]


def test_the_plan_of_our_own_clone_is_empty() -> None:
    """In a clone of this project everything is there already, under the names that it has here."""
    plan = migrations.make_plan(migrations_folder(), dt.datetime.now(dt.UTC), update=False)
    assert (plan.present, plan.changed, plan.added) == ([path.name for path in OURS], [], [])
