"""Servers and folders go away with the process that started them, however it ends."""

import os
import signal
import threading
from pathlib import Path

import httpx
import psycopg
import pytest

from processors_v2._local.process import wait_until
from processors_v2.local import LocalStackError, LocalSupabase
from tests.stack.conftest import Child


def is_served(url: str) -> bool:
    """Whether PostgREST answers."""
    try:
        return httpx.get(url, trust_env=False).is_success
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_after_a_signal(child: Child, number: signal.Signals) -> None:
    """Ctrl-C reaches the whole process group; SIGTERM and SIGKILL leave no time to clean up: all the same."""
    assert is_served(child.url)
    os.killpg(child.process.pid, number)
    child.process.wait(30)
    assert child.survivors() == []
    assert [folder for folder in child.folders if folder.exists()] == []


@pytest.mark.parametrize("child", ["fork"], indirect=True)
def test_a_forked_child_does_not_keep_the_servers_alive(child: Child) -> None:
    """A worker forked from the killed process still holds copies of its pipes, which must not matter."""
    os.kill(child.process.pid, signal.SIGKILL)
    survivors = child.survivors()
    # Ends the forked worker.
    os.killpg(child.process.pid, signal.SIGKILL)
    assert survivors == []


def test_a_forked_child_does_not_delay_the_end() -> None:
    """A worker that still runs, with its copy of the pipe to the watchdog, is not waited for."""
    with LocalSupabase(migrations=None):
        reader, writer = os.pipe()
        if (pid := os.fork()) == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
    os.close(writer)
    os.close(reader)
    os.waitpid(pid, 0)


def test_two_processes_and_two_stacks_in_one_do_not_collide(bare: LocalSupabase, child: Child) -> None:
    """Each stack has ports, data and keys of its own."""
    with LocalSupabase(migrations=None) as other:
        assert len({bare.url, other.url, child.url}) == 3
        assert bare.admin_url != other.admin_url
        assert all(is_served(url) for url in (bare.url, other.url, child.url))


def test_an_exception_in_the_block_stops_everything() -> None:
    """The with block cleans up and lets the exception through."""
    facts: list[tuple[str, Path]] = []

    def fail() -> None:
        with LocalSupabase(migrations=None) as stack:
            assert stack._postgres is not None
            facts.append((stack.url, stack._postgres.folder))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    [(url, folder)] = facts
    assert not is_served(url)
    assert not folder.exists()


def test_a_failed_start_leaves_nothing(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A migration that fails stops the servers again, and the stack can be asked to start once more."""
    monkeypatch.setenv("TMPDIR", str(open_folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    bad = open_folder / "bad.sql"
    bad.write_text("select nonsense;")
    stack = LocalSupabase(migrations=[bad])
    for _ in range(2):
        with pytest.raises(LocalStackError, match="nonsense"):
            stack.start()
    assert [path for path in open_folder.iterdir() if path != bad] == []


def test_start_and_stop_may_be_called_again(bare: LocalSupabase) -> None:
    """A second start changes nothing; a second stop, or one without a start, does nothing."""
    url = bare.url
    assert bare.start() is bare
    assert bare.url == url
    LocalSupabase().stop()


def test_the_thread_that_started_a_stack_may_end() -> None:
    """Servers belong to the process, not to the thread (a fixture may run in any)."""
    stack = LocalSupabase(migrations=None)
    thread = threading.Thread(target=stack.start)
    thread.start()
    thread.join()
    try:
        assert is_served(stack.url)
    finally:
        stack.stop()


def test_a_forked_child_cannot_stop_the_stack() -> None:
    """A worker that inherited the object and ends has no say over servers and folders."""
    with LocalSupabase(migrations=None) as stack:
        # A process forked here must not run the rest of the tests.
        if (pid := os.fork()) == 0:
            stack.stop()
            os._exit(0)
        os.waitpid(pid, 0)
        assert is_served(stack.url)
        with psycopg.connect(stack.database_url) as connection:
            connection.execute("create table public.written ()")
        assert stack._postgres is not None
        assert stack._postgres.folder.exists()


def test_data_is_kept_in_a_folder_of_the_callers(open_folder: Path) -> None:
    """With data_dir the data, roles and superuser's password are there again at the next start."""
    folder = open_folder / "data"
    with (
        LocalSupabase(migrations=None, data_dir=folder) as stack,
        psycopg.connect(stack.database_url) as connection,
    ):
        connection.execute("create table public.kept as select 1 as id")
        connection.commit()
    with (
        LocalSupabase(migrations=None, data_dir=folder) as stack,
        psycopg.connect(stack.database_url) as connection,
    ):
        assert connection.execute("select id from public.kept").fetchall() == [(1,)]
    assert folder.exists()


def test_one_folder_serves_one_stack(open_folder: Path) -> None:
    """A second server on the same data would destroy it: Postgres refuses, and the error shows its words."""
    folder = open_folder / "data"
    with LocalSupabase(migrations=None, data_dir=folder) as stack:
        with pytest.raises(LocalStackError, match="already exists"):
            LocalSupabase(migrations=None, data_dir=folder).start()
        assert wait_until(lambda: is_served(stack.url), 10)
