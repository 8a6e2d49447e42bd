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
    mended = tmp_path / "mended.sql"

    def plant(fault: Break) -> None:
        found = [fault.definitions(path.read_text()) for path in migration_files(migrations_folder())]
        definitions = [pair for pair in found if pair]
        assert definitions, f"no migration defines {fault.function}: plant the fault where it is done now"
        # The last one is the one that holds.
        sound, broken = definitions[-1]
        mended.write_text(sound)
        (tmp_path / "broken.sql").write_text(broken)
        breakable.apply(tmp_path / "broken.sql")

    yield plant
    if mended.exists():
        breakable.apply(mended)
