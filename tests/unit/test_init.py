"""``stage-tracker init``: the migrations in a project of the user's."""

import datetime as dt
import json
import os
import shutil
import threading
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
    return [name.partition("_")[2].removesuffix(".sql") for name in names]


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


def test_three_files_come_and_none_lies_in_the_future(init: Init, folder: Path) -> None:
    """A project gets three files, a second apart, the last of them of now: what it makes next sorts behind them."""
    added = init()["migrations"]["added"]
    times = [dt.datetime.strptime(name[:14], "%Y%m%d%H%M%S").replace(tzinfo=dt.UTC) for name in added]
    assert len(times) == 3
    assert times == [times[0] + dt.timedelta(seconds=number) for number in range(3)]
    assert times[-1] <= dt.datetime.now(dt.UTC)
    assert (folder / "supabase" / "config.toml").exists()


def test_behind_a_file_of_this_very_second_it_waits(tmp_path: Path) -> None:
    """Where a second has been taken, the plan says when its own times are over: three seconds later at most."""
    now = dt.datetime.now(dt.UTC).replace(microsecond=0)
    (tmp_path / f"{now:%Y%m%d%H%M%S}_mine.sql").touch()
    plan = migrations.make_plan(tmp_path, now, update=False)
    assert [name[:14] for name, _ in plan.added] == [
        f"{now + dt.timedelta(seconds=number):%Y%m%d%H%M%S}" for number in (1, 2, 3)
    ]
    assert plan.not_before == now + dt.timedelta(seconds=3)


def test_a_second_run_changes_nothing(init: Init, project: Path) -> None:
    """Everything is found again, by its text: no file is added, and none is touched."""
    init("--functions")
    before = state_of(project)
    answer = init("--functions")
    assert answer["migrations"]["added"] == answer["functions"]["added"] == []
    assert len(answer["migrations"]["present"]) == len(OURS)
    assert answer["config"] == "none"
    assert state_of(project) == before


@pytest.mark.parametrize("rename", ["21500101000000_{}.sql", "20200101000000_mine_{}.sql"])
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
    taken = own(project)[2]
    taken.unlink()
    before = state_of(project)
    added = init()["migrations"]["added"]
    assert topics_of(added) == [TOPICS[2]]
    after = state_of(project)
    assert after.pop(f"supabase/migrations/{added[0]}") == OURS[2].read_bytes()
    assert after == before
    assert max(after) < f"supabase/migrations/{added[0]}"


def test_another_text_is_told_and_left(run: Callable[..., Any], init: Init, project: Path) -> None:
    """Where a file of ours has another text nothing is added, since the rest may build on it; the remedy is told."""
    init()
    edited, missing = own(project)[0], own(project)[2]
    edited.write_text("-- an earlier version\n")
    missing.unlink()
    before = state_of(project)
    answer = init(code=1)
    assert (answer["migrations"]["changed"], answer["migrations"]["added"]) == ([edited.name], [])
    assert state_of(project) == before
    said = run("init").out
    assert f"{edited.name} has another text than ours" in said
    assert "stage-tracker init --update" in said


def test_update_adds_the_newer_text_alone_and_tells_how_to_review_it(
    run: Callable[..., Any], init: Init, project: Path
) -> None:
    """With --update the objects come as one further file, which holds all; what has not changed does not come again."""
    init()
    edited = own(project)[0]
    edited.write_text("-- an earlier version\n")
    before = state_of(project)
    answer = init("--update")["migrations"]
    assert topics_of(answer["added"]) == [TOPICS[0]]
    folder = "supabase/migrations"
    assert answer["reviews"] == [f"git diff --no-index {folder}/{edited.name} {folder}/{answer['added'][0]}"]
    after = state_of(project)
    assert {name: text for name, text in after.items() if name in before} == before
    assert init()["migrations"]["added"] == []
    own(project)[-1].write_text("-- another text\n")
    assert "git diff --no-index" in run("init", "--update").out


def test_a_project_with_the_28_files_of_before_gets_three(init: Init, project: Path) -> None:
    """What came as 28 files is told as an earlier version; the update adds three files, and then all is there."""
    for number in range(28):
        (project / "supabase" / "migrations" / f"202611010{number:05}_stage_tracking_topic_{number}.sql").write_text(
            "--"
        )
    answer = init(code=1)["migrations"]
    assert (len(answer["changed"]), answer["added"]) == (28, [])
    assert topics_of(init("--update")["migrations"]["added"]) == TOPICS
    answer = init()["migrations"]
    assert (answer["changed"], answer["added"], len(answer["present"])) == ([], [], 3)


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
    assert f"{len(OURS)} files would be added: " in said
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
        if len(written) == 3:
            raise OSError(28, "No space left on device", str(target))
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(json.JSONDecodeError):
        init(code=5)
    monkeypatch.undo()
    assert [path.read_bytes() for path in own(project)] == [path.read_bytes() for path in OURS[:1]]
    monkeypatch.chdir(project)
    assert topics_of(init()["migrations"]["added"]) == TOPICS[1:]


def test_the_plan_of_our_own_clone_is_empty() -> None:
    """In a clone of this project everything is there already, under the names that it has here."""
    plan = migrations.make_plan(migrations_folder(), dt.datetime.now(dt.UTC), update=False)
    assert (plan.present, plan.changed, plan.added) == ([path.name for path in OURS], [], [])


@pytest.fixture
def settings(project: Path) -> Path:
    """The config.toml of the project."""
    return project / "supabase" / "config.toml"


def refused(run: Callable[..., Any], project: Path, *said: str) -> None:
    """Init ends with a sentence that says all of these, and has changed nothing."""
    before = state_of(project)
    done = run("init", "--functions")
    assert (done.code, done.out, "Traceback" in done.err) == (5, "", False)
    assert [one for one in said if one not in done.err] == [], done.err
    assert state_of(project) == before


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o640, 0o444])
def test_a_file_keeps_its_mode(init: Init, settings: Path, mode: int) -> None:
    """Who may read config.toml, which may hold secrets, is for its owner to say."""
    settings.chmod(mode)
    assert init()["config"] == "changed"
    assert oct(settings.stat().st_mode & 0o7777) == oct(mode)


def test_new_files_have_the_mode_of_every_new_file(init: Init, folder: Path) -> None:
    """They are as readable as what the user makes by any other program."""
    (folder / "other").touch()
    usual = (folder / "other").stat().st_mode
    init("--functions")
    assert {path.stat().st_mode for path in (folder / "supabase").rglob("*") if path.is_file()} == {usual}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may give files away")
def test_a_file_keeps_its_owner(init: Init, settings: Path) -> None:
    """Root changes a file of somebody else, who goes on owning it."""
    os.chown(settings, 12345, 23456)
    init()
    assert (settings.stat().st_uid, settings.stat().st_gid) == (12345, 23456)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_the_settings_keep_every_byte(init: Init, settings: Path, mark: bytes, end: str) -> None:
    """A byte order mark, the line ends and letters of all kinds stay; only krai_core comes in, and what is needed."""
    text = (CONFIG + "# größe 🎈\n").replace("\n", end)
    settings.write_bytes(mark + text.encode())
    init("--functions")
    after = settings.read_bytes()
    assert after.startswith(mark)
    lines = after.removeprefix(mark).decode().split(end)
    assert [line for line in lines if "\n" in line or "\r" in line] == []
    assert [line for line in lines if "krai_core" not in line][: text.count(end)] == text.split(end)[:-1]
    loaded = tomllib.loads(after.removeprefix(mark).decode())
    assert (loaded["api"]["schemas"][-1], loaded["functions"]["status"]) == ("krai_core", {"verify_jwt": False})


@pytest.mark.parametrize("content", ["# größe\n".encode("latin-1"), CONFIG.encode("utf-16")], ids=["latin-1", "utf-16"])
def test_settings_in_another_encoding_are_refused(
    run: Callable[..., Any], project: Path, settings: Path, content: bytes
) -> None:
    """What is no UTF-8 would not come back as it was, so the line is named and nothing is changed."""
    settings.write_bytes(content)
    refused(run, project, "supabase/config.toml: line 1 is not UTF-8", "Save it as UTF-8")


def test_a_symbolic_link_stays_one(init: Init, settings: Path) -> None:
    """The file that it leads to is changed, with the mode that it has, and the link leads there still."""
    target = settings.parents[1] / "shared.toml"
    settings.rename(target)
    target.chmod(0o600)
    settings.symlink_to(Path("..", "shared.toml"))
    assert init()["config"] == "changed"
    assert settings.readlink() == Path("..", "shared.toml")
    assert tomllib.loads(target.read_text())["api"]["schemas"] == ["public", "krai_core"]
    assert target.stat().st_mode & 0o777 == 0o600


def test_a_file_with_two_names_keeps_both(init: Init, settings: Path) -> None:
    """A hard link shows the change as well."""
    other = settings.with_name("other.toml")
    other.hardlink_to(settings)
    init()
    assert other.samefile(settings)
    assert b"krai_core" in other.read_bytes()


def test_nothing_is_written_through_a_prepared_link(init: Init, project: Path, settings: Path) -> None:
    """A link of somebody else's, under a name that a program might use for a while, leads to a file that stays."""
    victim = project / "victim"
    victim.write_text("mine\n")
    for name in (".config.toml.new", ".config.toml.tmp", "config.toml.new", "config.toml~"):
        settings.with_name(name).symlink_to(victim)
    init()
    assert victim.read_text() == "mine\n"
    assert {path.name for path in settings.parent.iterdir() if path.is_file() and not path.is_symlink()} == {
        "config.toml"
    }


@pytest.mark.parametrize(
    "name",
    [
        "config.toml",
        "migrations/20250101000000_x.sql",
        "functions/status/index.ts",
    ],
)
@pytest.mark.parametrize("kind", ["a link to nothing", "a link to itself", "a folder"])
def test_what_is_no_file_is_refused(
    run: Callable[..., Any], project: Path, settings: Path, name: str, kind: str
) -> None:
    """Where a file belongs and something else has its name, that is named, before anything was changed."""
    path = settings.parent / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if kind == "a folder":
        path.mkdir()
    else:
        path.symlink_to(path if "itself" in kind else project / "not-there")
    refused(run, project, f"supabase/{name} is ", "no file", "Move it away")
    assert not (project / "not-there").exists()


@pytest.mark.parametrize("name", ["supabase", "supabase/migrations", "supabase/functions", "supabase/functions/status"])
@pytest.mark.parametrize("kind", ["a file", "a link to nothing"])
def test_what_is_no_folder_is_refused(run: Callable[..., Any], folder: Path, name: str, kind: str) -> None:
    """Where a folder belongs and something else has its name, that is named, before anything was changed."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "a file":
        path.touch()
    else:
        path.symlink_to(folder / "not-there")
    refused(run, folder, f"{path} is no folder", "Move it away")


def test_folders_may_be_links(init: Init, project: Path) -> None:
    """Migrations that live elsewhere get theirs there."""
    folder = project / "supabase" / "migrations"
    folder.rename(project / "elsewhere")
    folder.symlink_to(project / "elsewhere")
    added = init()["migrations"]["added"]
    assert folder.is_symlink()
    assert len(list((project / "elsewhere").iterdir())) == len(added) + 1


def test_sql_keeps_what_it_writes_to(run: Callable[..., Any], folder: Path) -> None:
    """--output into a file that is there keeps its mode and its link."""
    (folder / "kept.sql").touch(0o600)
    (folder / "link.sql").symlink_to("kept.sql")
    assert run("sql", "--output", "link.sql").code == 0
    assert (folder / "link.sql").is_symlink()
    assert ((folder / "kept.sql").stat().st_mode & 0o777, (folder / "kept.sql").read_text()[:2]) == (0o600, "--")


def test_sql_goes_into_a_pipe(run: Callable[..., Any], folder: Path) -> None:
    """--output into what is no file, such as a named pipe, is read at its other end."""
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    assert run("sql", "--output", "pipe").code == 0
    reader.join(30)
    assert read == [run("sql").out.encode()]


def test_after_an_error_no_file_of_ours_is_left_over(
    run: Callable[..., Any], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full leaves what was there, and nothing beside it."""
    before = state_of(project)

    def full(_: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(Path, "replace", full)
    done = run("init")
    assert (done.code, "No space left on device" in done.err) == (5, True)
    assert state_of(project) == before
