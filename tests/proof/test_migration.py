"""The parts of ``./dev proof migration``: what its judge notices, and what it says of each run."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from rich.console import Console

from benchmarks._shared.bench import Bench
from processors_v2._local.project import migrations_folder
from processors_v2.local import LocalSupabase
from proof import migration
from proof._migration import field, judge, supabase_cli, ways
from proof._migration.killer import Killer
from proof._migration.traffic import Told, Traffic

DOCUMENTS = 200
ARCHIVE, PENDING, TRACKED, FAILED = (f"'{field.document_id(number)}'" for number in (1, 10, 13, 17))
BY_HAND = "set session_replication_role = replica;"
# What is done to a migrated database, and what of it the judge must notice.
FAULTS = {
    f"delete from krai_core.documents where id = {ARCHIVE}": "rows or other columns changed",
    f"update krai_core.documents set content_text = 'x' where id = {ARCHIVE}": "rows or other columns changed",
    f"{BY_HAND} update krai_core.documents set stage_status = '{{}}' where id = {PENDING}": "documents out of shape",
    f"select krai_core.complete_stage({PENDING}, 'upload')": "documents with other stages than they were made with",
    f"{BY_HAND} update krai_core.documents set stage_status = stage_status #- '{{upload,metadata,page_count}}'"
    f" where id = {TRACKED}": "documents that lost what a stage held",
    f"{BY_HAND} update krai_core.documents set stage_status = stage_status #- '{{text_extraction,error}}'"
    f" where id = {FAILED}": "documents that lost what a stage held",
    f"delete from krai_core.stage_runs where is_current and document_id = {ARCHIVE}": "stages without their run",
    f"delete from krai_core.stage_runs where status = 'ready' and document_id = {PENDING}": "ready runs rebuilt",
    "insert into krai_core.stage_deltas (stage_name, failed) values ('upload', 1)": "statistics rebuilt",
    "insert into krai_core.stage_deltas (stage_name, documents) values ('', 1)": (
        "stages whose counts are not those of the documents"
    ),
    "update krai_core.stages set fill_after = gen_random_uuid() where name = 'upload'": "left to be done",
    "drop index krai_core.idx_documents_stage_status": "left to be done",
}


@dataclasses.dataclass
class Migrated:
    """A migrated database, and what was there before."""

    url: str = dataclasses.field(repr=False)
    before: tuple[Any, ...]


@pytest.fixture(scope="module")
def local() -> Iterator[LocalSupabase]:
    """A stack without migrations."""
    with LocalSupabase(migrations=None) as stack:
        yield stack


@pytest.fixture(scope="module")
def migrated(local: LocalSupabase) -> Migrated:
    """A database of an earlier tracker that was migrated with nobody beside."""
    local.create_database("judged")
    with psycopg.connect(local.url_of("judged"), autocommit=True) as connection:
        for _ in field.fill(connection, "v1", DOCUMENTS):
            pass
        before = judge.others(connection)
    local.apply_to("judged", migrations_folder())
    return Migrated(local.url_of("judged", "supabase_admin"), before)


def _wrong(connection: psycopg.Connection[Any], migrated: Migrated, told: Told) -> set[str]:
    return {what for what, number in judge.verdicts(connection, "v1", migrated.before, told) if number}


def test_the_judge_finds_nothing_in_a_database_that_is_right(migrated: Migrated) -> None:
    """Every verdict is none."""
    with psycopg.connect(migrated.url) as connection:
        assert _wrong(connection, migrated, Told()) == set()
        connection.rollback()


@pytest.mark.parametrize(("fault", "verdict"), FAULTS.items())
def test_the_judge_notices_each_fault(migrated: Migrated, fault: str, verdict: str) -> None:
    """One thing that is done to the database is found by the verdict that is for it."""
    with psycopg.connect(migrated.url) as connection:
        connection.execute(fault)
        connection.execute("set session_replication_role = origin")
        found = _wrong(connection, migrated, Told())
        connection.rollback()
    assert verdict in found


def test_the_judge_notices_what_writers_lost(migrated: Migrated) -> None:
    """Inserts, names and edits that were acknowledged are looked for, one by one; a refusal counts as such."""
    unheard_of = field.document_id(0)
    told = Told([unheard_of], {field.document_id(7): "renamed.pdf"}, {field.document_id(11): ("skipped", 3)})
    with psycopg.connect(migrated.url) as connection:
        assert judge.lost(connection, told) == 3
        told.errors.append("insert: refused")
        assert _wrong(connection, migrated, told) == {"acknowledged writes lost", "refused to a writer"}
        connection.rollback()


def test_a_write_that_waits_for_a_lock_is_seen(local: LocalSupabase) -> None:
    """A step that keeps writers out is told by the longest statement in it, and by the wait for the lock."""
    local.create_database("locked")
    url = local.url_of("locked")
    with psycopg.connect(url, autocommit=True) as connection:
        for _ in field.fill(connection, "v1", DOCUMENTS):
            pass
        with Traffic(url, DOCUMENTS, 1) as traffic:
            traffic.enter("open")
            _until(lambda: traffic.waits["open"].statements > 5)
            traffic.enter("locked")
            with connection.transaction():
                connection.execute("lock table krai_core.documents in share mode")
                _until(lambda: traffic.waits["locked"].locked > 0.2)
            _until(lambda: traffic.waits["locked"].longest > 0.2)
    assert traffic.waits["open"].locked < traffic.waits["locked"].locked
    assert traffic.told.errors == []


def _until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)


def test_a_run_has_a_figure_for_each_file_and_each_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waits in all files have a target, and all verdicts are met."""
    monkeypatch.setenv("MIGRATION_DOCUMENTS", str(DOCUMENTS))
    monkeypatch.setenv("MIGRATION_SEED", "5")
    bench = Bench(quick=True, console=Console(width=200), only=["field", "psql", "whole"])
    migration.run(bench)
    names = [result.name for result in bench.results]
    for path in ways.migration_files(migrations_folder()):
        assert f"field, psql, 200: {path.stem}, longest write" in names
    verdicts = [result for result in bench.results if result.target == "none"]
    assert [result.ok for result in verdicts] == [True] * judge.VERDICTS


def test_without_the_cli_the_push_is_left_out(
    local: LocalSupabase, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The campaign says why and goes on."""

    def missing() -> None:
        raise supabase_cli.CliMissing("the Supabase CLI cannot be had from npm: no npm")

    monkeypatch.setattr(supabase_cli, "find_program", missing)
    bench = Bench(quick=True, console=Console(width=200))
    migration.make(bench, local, "v1_100", "v1", 100)
    migration.migrate(bench, local, "v1_100", ("push", "whole"), 100, 1)
    assert bench.results == []
    assert "v1, push, 100 is left out: the Supabase CLI cannot be had from npm: no npm" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("said", "was"),
    [
        ("repair.sql: FATAL:  terminating connection due to administrator command", True),
        ("repair.sql: error: connection to server was lost", True),
        ("repair.sql: ", True),
        ("repair.sql: ERROR:  deadlock detected", False),
    ],
)
def test_only_an_end_that_was_brought_about_is_run_again(*, said: str, was: bool) -> None:
    """A file that fails by itself ends the campaign."""
    assert Killer.was_it(said) is was
