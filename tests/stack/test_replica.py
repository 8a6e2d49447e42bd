"""A replica answers the questions, so that dashboards need not ask the database that the workers use."""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from processors_v2._local.postgres import find_installation
from processors_v2._local.process import clean_environment, free_port, private_folder, spawn_as, wait_until
from processors_v2.local import LocalSupabase

Connection = psycopg.Connection[tuple[object, ...]]

# Every one of them that answers about documents and stages; {document} is one of them.
QUESTIONS = """
select * from krai_core.vw_stage_statistics
select * from krai_core.vw_stage_flow
select * from krai_core.vw_running_stages
select * from krai_core.vw_documents_by_stage
select * from krai_core.vw_document_stages
select krai_core.get_stage_statistics()
select krai_core.get_forecast()
select krai_core.get_failures()
select krai_core.get_stuck_stages()
select krai_core.get_workers()
select krai_core.list_documents()
select krai_core.list_documents('upload', 'completed')
select krai_core.list_documents('upload', 'pending')
select krai_core.list_documents(null, 'failed')
select krai_core.get_documents_ready_for('text_extraction')
select krai_core.get_document_status('{document}')
select krai_core.get_document_timeline('{document}')
select krai_core.get_document_eta('{document}')
select krai_core.get_document_progress('{document}')
select krai_core.get_weighted_progress('{document}')
select krai_core.get_current_stage('{document}')
select krai_core.can_start_stage('{document}', 'text_extraction')
select krai_core.explain_stage('{document}', 'text_extraction')
""".strip().splitlines()
WORK = """
select krai_core.finish_stages(jsonb_agg(run || '{"outcome": "completed"}'))
from jsonb_array_elements(krai_core.claim_stages('upload', 'somebody', 10)) run
"""


@pytest.fixture(scope="module")
def replica() -> Iterator[Connection]:
    """A connection as service_role to a replica that has replayed all there is, of documents in several states."""
    installation = find_installation(16)
    with LocalSupabase() as local, contextlib.ExitStack() as ends:
        primary = ends.enter_context(psycopg.connect(local.admin_url, autocommit=True))
        primary.execute("insert into krai_core.documents (filename) select n || '.pdf' from generate_series(1, 20) n")
        primary.execute(WORK)
        primary.execute("select krai_core.claim_stages('text_extraction', 'somebody', 5)")
        server = conninfo_to_dict(local.admin_url)
        folder = private_folder(installation.account)
        ends.callback(shutil.rmtree, folder)
        login = {"PGHOST": str(server["host"]), "PGPORT": str(server["port"]), "PGUSER": str(server["user"])}
        subprocess.run(
            [installation.bin / "pg_basebackup", "-D", folder / "data", "-R", "-X", "stream", "-c", "fast"],
            check=True,
            capture_output=True,
            cwd="/",
            env=clean_environment() | login | {"PGPASSWORD": str(server["password"])},
            **spawn_as(installation.account),
        )
        port = free_port()
        given = ("-D", folder / "data", f"--port={port}", "--listen_addresses=127.0.0.1", "--unix_socket_directories=")
        process = subprocess.Popen(
            [installation.bin / "postgres", *given],
            cwd="/",
            env=clean_environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **spawn_as(installation.account),
        )
        ends.callback(process.wait)
        ends.callback(process.terminate)
        url = local.admin_url.replace(f":{server['port']}/", f":{port}/")
        opened: list[Connection] = []
        assert wait_until(lambda: connects(url, opened), 60)
        connection = ends.enter_context(opened[0])
        end = primary.execute("select pg_current_wal_lsn()").fetchone()
        assert end is not None
        replayed = "select pg_last_wal_replay_lsn() >= %s::pg_lsn"
        assert wait_until(lambda: connection.execute(replayed, [end[0]]).fetchone() == (True,), 60)
        connection.execute("set role service_role")
        yield connection


def connects(url: str, opened: list[Connection]) -> bool:
    """Whether a server answers; then the connection is there."""
    with contextlib.suppress(psycopg.OperationalError):
        opened.append(psycopg.connect(url, autocommit=True))
    return bool(opened)


@pytest.mark.parametrize("question", QUESTIONS)
def test_each_question_is_answered_by_a_replica(replica: Connection, question: str) -> None:
    """No question writes, locks, or needs what a replica does not have."""
    row = replica.execute("select id from krai_core.documents order by filename limit 1").fetchone()
    assert row is not None
    replica.execute(question.format(document=row[0]).encode())


def test_the_replica_knows_what_the_workers_did(replica: Connection) -> None:
    """Its figures are those of the database that it follows."""
    rows = replica.execute(
        "select pending_count, processing_count, completed_count from krai_core.vw_stage_statistics"
        " where stage_name in ('upload', 'text_extraction') order by stage_name"
    ).fetchall()
    assert rows == [(15, 5, 0), (10, 0, 10)]


def test_a_replica_takes_no_work(replica: Connection) -> None:
    """A worker that is pointed at a replica hears so at once."""
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        replica.execute("select krai_core.claim_stages('upload', 'somebody', 1)")
