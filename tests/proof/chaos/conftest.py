"""A stack of its own, whose functions may be broken on purpose."""

from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import supabase

from processors_v2._local.project import migration_files, migrations_folder
from processors_v2.local import LocalSupabase
from proof._chaos.plant import Break
from proof._chaos.proxy import Proxy
from proof._chaos.scene import Scene


@pytest.fixture(scope="module")
def breakable() -> Iterator[LocalSupabase]:
    """A stack whose functions no other test uses."""
    with LocalSupabase() as stack:
        yield stack


@pytest.fixture
def scene(breakable: LocalSupabase, tmp_path: Path) -> Iterator[Scene]:
    """A scene without documents, and without any fault."""
    proxy = Proxy(int(breakable.url.rpartition(":")[2]))
    with psycopg.connect(breakable.admin_url, autocommit=True) as connection:
        connection.execute("delete from krai_core.documents")
        connection.execute("update krai_core.stages set max_attempts = 5, backoff_seconds = 0, backoff_max_seconds = 0")
        scene = Scene(breakable, proxy, tmp_path, connection, supabase.create_client(proxy.url, breakable.key()))
        yield scene
    for journal in scene.journals:
        journal.close()
    proxy.close()


@pytest.fixture
def plant(breakable: LocalSupabase, tmp_path: Path) -> Iterator[Callable[[Break], None]]:
    """Plant a fault; it is taken out again at the end of the test."""
    touched: list[Path] = []

    def plant(fault: Break) -> None:
        for path in migration_files(migrations_folder()):
            text = fault.in_file(path.read_text())
            if text is not None:
                touched.append(path)
                broken = tmp_path / path.name
                broken.write_text(text)
                breakable.apply(broken)
        assert touched, f"no migration defines {fault.function}: plant the fault where it is done now"

    yield plant
    breakable.apply(touched)
