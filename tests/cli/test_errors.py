"""What goes wrong is said in a sentence with its remedy, on standard error, and has an exit code of its own."""

import uuid
from pathlib import Path
from typing import Any

import pytest

from processors_v2.local import LocalSupabase

NOBODY = str(uuid.UUID(int=0))


def is_clean(done: Any) -> bool:
    """Whether nothing was answered, and no traceback shown."""
    return done.out == "" and "Traceback" not in done.err and done.err.startswith("Error: ")


@pytest.mark.usefixtures("direct")
@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (["status", NOBODY], 3, f"document {NOBODY}"),
        (["timeline", NOBODY], 3, f"document {NOBODY}"),
        (["cancel", NOBODY], 3, f"document {NOBODY}"),
        (["explain", NOBODY, "ocr"], 3, "Stages are: upload, text_extraction"),
        (["ls", "--stage", "ocr"], 3, "Stages are: upload, text_extraction"),
        (["pause", "ocr"], 3, "Stages are: upload, text_extraction"),
        (["status", "manual.pdf"], 2, "manual.pdf"),
        (["ls", "--status", "pending"], 2, "stage"),
        (["ls", "--stage", "upload", "--status", "done"], 2, "pending, processing, completed, failed or skipped"),
        (["forecast", "--hours", "0"], 2, "1 to 720"),
    ],
)  # fmt: skip
def test_each_kind_of_error_has_its_code(run: Any, command: list[str], code: int, said: str) -> None:
    """What there is not is 3, what cannot be read is 2; the message names the value and what would do."""
    done = run(*command)
    assert done.code == code
    assert is_clean(done)
    assert said in done.err
    assert run(*command, "--json").out == ""


@pytest.mark.usefixtures("direct")
def test_a_conflict_is_4(run: Any, db: Any, tracker: Any) -> None:
    """A call that does not fit the state of the stage says which state that is, and what to use instead."""
    document = db.document()
    tracker.complete_stage(document, "upload")
    done = run("retry", document, "upload")
    assert done.code == 4
    assert is_clean(done)
    assert "completed" in done.err
    assert "reset_stage" in done.err


def test_a_key_that_is_refused_is_5(run: Any, project: LocalSupabase, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key without the right to ask says which one is needed."""
    assert run("stats").code == 0
    monkeypatch.setenv("SUPABASE_SECRET_KEY", project.key("anon"))
    done = run("stats")
    assert done.code == 5
    assert "the anon key, which may not write stages" in done.err
    assert "secret (or service_role) key" in done.err


def test_a_database_without_the_migrations_is_5(
    run: Any, local: LocalSupabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says to apply them."""
    monkeypatch.setenv("SUPABASE_DB_URL", local.url_of("template1"))
    done = run("stats")
    assert done.code == 5
    assert is_clean(done)
    assert "supabase db push" in done.err


def test_variables_come_from_a_file_too(run: Any, folder: Path, database: str) -> None:
    """A file .env in the working directory names the database."""
    (folder / ".env").write_text(f"SUPABASE_DB_URL={database}\n", encoding="utf-8")
    assert run("stats").code == 0


@pytest.mark.parametrize("command", ["stats", "doctor"])
def test_a_file_of_variables_that_cannot_be_read_is_5(run: Any, folder: Path, command: str) -> None:
    """What PowerShell writes is UTF-16: the file is named, and how to save it."""
    (folder / ".env").write_text("SUPABASE_URL=http://127.0.0.1:9\n", encoding="utf-16")
    done = run(command)
    assert done.code == 5
    assert is_clean(done)
    assert f"{folder / '.env'} is not UTF-8. Save it as UTF-8" in " ".join(done.err.split())


def test_a_key_is_not_sent_to_the_url_of_another_place(
    run: Any, folder: Path, project: LocalSupabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--url is of the environment, and the key of a .env that names another URL stays there; doctor says so too."""
    monkeypatch.delenv("SUPABASE_SECRET_KEY")
    monkeypatch.delenv("SUPABASE_URL")
    (folder / ".env").write_text(f"SUPABASE_URL=http://127.0.0.1:9\nSUPABASE_KEY={project.key()}\n", encoding="utf-8")
    for command, code in (("stats", 5), ("doctor", 1)):
        done = run(command, "--url", "http://127.0.0.1:8")
        assert (done.code, project.key() in done.out + done.err) == (code, False)
        assert "may be of two projects" in " ".join((done.out + done.err).split())


def test_quotation_marks_around_a_database_url_are_taken_off(
    run: Any, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As around URL and key of a project: docker's --env-file keeps them."""
    monkeypatch.setenv("SUPABASE_DB_URL", f'"{database}"')
    assert run("stats").code == 0


def test_an_option_wins_over_the_environment(run: Any, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """--database-url counts before SUPABASE_URL and SUPABASE_DB_URL."""
    monkeypatch.setenv("SUPABASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("SUPABASE_DB_URL", "postgresql://127.0.0.1:9/x")
    assert run("stats", "--database-url", database).code == 0


def test_no_key_and_no_password_is_ever_shown(
    run: Any, project: LocalSupabase, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither answers nor errors nor help repeat what is secret."""
    password = database.split(":")[2].split("@", maxsplit=1)[0]
    secrets = [project.key(), project.key("anon"), password]
    printed = []
    for command in (["stats"], ["ls"], ["watch", "--once"], ["status", NOBODY], ["stats", "--help"], ["--help"]):
        printed.append(run(*command))
        printed.append(run(*command, *([] if "--help" in command else ["--database-url", database])))
    away = database.replace("@127.0.0.1:", "@127.0.0.1:9", 1)
    for url in (away, f"{database}:x", database.replace("postgresql://", "postgresql:/")):
        printed.append(run("stats", "--database-url", url, "--timeout", "0.1"))
        assert printed[-1].code in {5, 6}
    monkeypatch.setenv("SUPABASE_SECRET_KEY", project.key("anon"))
    printed.append(run("stats"))
    for done in printed:
        assert not [one for one in secrets if one in done.out + done.err], done
