"""The stack as a whole: LocalSupabase."""

import atexit
import os
import secrets
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeVar

import httpx
import supabase
from psycopg.conninfo import conninfo_to_dict

from processors_v2._local import clients, keys, postgrest, project
from processors_v2._local import database as _database
from processors_v2._local import postgres as _postgres
from processors_v2._local.process import LocalStackError, Watchdog, clean_environment, private_folder, wait_until

__all__ = ["LocalSupabase"]

_Part = TypeVar("_Part")

_RELOAD_SECONDS = 30.0


class LocalSupabase:
    """An embedded Supabase: Postgres and PostgREST on free loopback ports, migrations applied.

    Servers and their folder go away with the ``with`` block, and also when this process is killed. Several
    can run at once. Nothing is started before ``start`` or ``with``.

    Args:
        postgres: major version of the Postgres from PyPI, or a folder with another installation (it has
            ``bin/initdb``).
        database_url: use this server instead, as an administrator. What is missing of roles, schemas
            and rights is added, nothing else is changed or dropped, and it goes on running. Where its role ``postgres``
            is a superuser, as Debian's is, migrations run as superuser.
        data_dir: keep the data here and find it again next time; by default a temporary folder, removed at
            the end.
        migrations: a folder (its ``*.sql`` in the order of their names), files in their order, or None for
            none; by default those of this project.
        schemas: the schemas that PostgREST serves; the first one is its default.
        max_rows: how many rows PostgREST returns at most; by default what ``supabase/config.toml`` says, else
            1000.
        settings: further settings of the Postgres server, such as ``{"max_connections": "300"}``.
    """

    def __init__(
        self,
        *,
        postgres: _postgres.Version | Path = 16,
        database_url: str | None = None,
        data_dir: Path | None = None,
        migrations: Path | Sequence[Path] | Literal["project"] | None = "project",
        schemas: Sequence[str] = ("krai_core", "public"),
        max_rows: int | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        if database_url is not None and (data_dir is not None or settings):
            raise ValueError("data_dir and settings belong to a server of its own, not to one given by database_url.")
        self._version = postgres
        self._external_url = database_url
        self._data_dir = data_dir
        self._migrations = migrations
        self._schemas = tuple(schemas)
        self._max_rows = max_rows
        self._settings = dict(settings or {})
        self._owner_pid = 0
        self._ends: ExitStack | None = None
        self._postgres: _postgres.Postgres | None = None
        self._server: _database.Server | None = None
        self._postgrest: postgrest.PostgREST | None = None
        self._psql: Path | None = None
        self._secret = ""
        self._pools: list[httpx.Client] = []

    def start(self) -> Self:
        """Start the servers, create the roles and apply the migrations; does nothing when already started.

        Raises:
            LocalStackError: something is missing or did not come up. Everything was stopped again.
        """
        if self._ends is not None:
            return self
        self._owner_pid = os.getpid()
        self._ends = ExitStack()
        atexit.register(self.stop)
        try:
            self._start(self._ends)
        except BaseException:
            self.stop()
            raise
        return self

    def _start(self, ends: ExitStack) -> None:
        binary = postgrest.find_binary()
        watchdog = Watchdog()
        ends.callback(watchdog.close)
        if self._external_url is None:
            installation = _postgres.find_installation(self._version)
            self._psql = installation.psql
            self._postgres = _postgres.Postgres(installation, self._data_dir, self._settings, watchdog)
            ends.callback(self._postgres.stop)
            self._postgres.start()
            admin_url = _database.url(
                "127.0.0.1", self._postgres.port, _postgres.SUPERUSER, self._postgres.password, "postgres"
            )
        else:
            self._psql = _postgres.find_psql()
            admin_url = self._external_url
        self._server = _database.Server(admin_url, owned=self._external_url is None)
        ends.callback(self._server.close)
        self._server.prepare()
        if self._migrations is not None:
            chosen = project.migrations_folder() if self._migrations == "project" else self._migrations
            self.apply(chosen)
        self._secret = secrets.token_urlsafe(48)
        scratch = private_folder(None)
        watchdog.tell(folder=str(scratch))
        self._postgrest = postgrest.PostgREST(
            binary,
            scratch,
            watchdog,
            database_uri=self._server.authenticator_url(),
            schemas=self._schemas,
            jwt_secret=self._secret,
            max_rows=project.max_rows() if self._max_rows is None else self._max_rows,
        )
        ends.callback(self._postgrest.stop)
        self._postgrest.start()

    def stop(self) -> None:
        """Stop what was started and remove the temporary folders; does nothing when not started."""
        ends = self._ends
        # A child that was forked from this process carries a copy of this object, and no say over the servers.
        if ends is None or self._owner_pid != os.getpid():
            return
        atexit.unregister(self.stop)
        for pool in self._pools:
            ends.callback(pool.close)
        try:
            ends.close()
        finally:
            self._pools = []
            self._postgrest = self._postgres = self._server = self._ends = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Address of PostgREST, without the ``/rest/v1`` that a Supabase project has in front of it."""
        return f"http://127.0.0.1:{self._running(self._postgrest).port}"

    @property
    def database_url(self) -> str:
        """URL of the role ``postgres``: owner of the database, and no superuser, as on Supabase."""
        return self.url_of(self._running(self._server).database)

    @property
    def admin_url(self) -> str:
        """Connection URL of the superuser ``supabase_admin``; with database_url= that URL."""
        return self._running(self._server).admin_url

    def key(self, role: str = "service_role", **claims: object) -> str:
        """Make an API key: a JWT for a role.

        Args:
            role: anon, authenticated, service_role, or any other that PostgREST may switch to.
            claims: further claims, such as ``sub="<user id>"``; ``exp`` is ten years ahead unless given.
        """
        self._running(self._postgrest)
        return keys.sign(self._secret, role, claims)

    def client(self, role: str = "service_role", **claims: object) -> supabase.Client:
        """Make a plain supabase-py client with a key of that role; ``stop`` closes its connections."""
        client, pool = clients.connect(self.url, self.key(role, **claims))
        self._pools.append(pool)
        return client

    async def async_client(self, role: str = "service_role", **claims: object) -> supabase.AsyncClient:
        """Make a plain async supabase-py client with a key of that role."""
        return await clients.connect_async(self.url, self.key(role, **claims))

    def apply(self, paths: Path | Sequence[Path]) -> None:
        """Run SQL files one by one as role ``postgres``, each by ``psql -X -v ON_ERROR_STOP=1 -f FILE``.

        Args:
            paths: a folder, whose ``*.sql`` run in the order of their names, a file, or files in their order.

        Raises:
            LocalStackError: psql failed; the message holds what it said.
            FileNotFoundError: there is no such folder or file.
        """
        self.apply_to(self._running(self._server).database, paths)

    def apply_to(self, database: str, paths: Path | Sequence[Path]) -> None:
        """Run SQL files as ``apply`` does, in another database of the server."""
        if isinstance(paths, Path):
            paths = project.migration_files(paths) if paths.is_dir() else [paths]
        for path in paths:
            if not path.is_file():
                raise FileNotFoundError(f"There is no SQL file {path}.")
            self._run_psql(database, path)

    def _run_psql(self, database: str, path: Path) -> None:
        # By environment, since the arguments of a process are there for all to read.
        names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD"}
        names |= {"dbname": "PGDATABASE", "options": "PGOPTIONS", "sslmode": "PGSSLMODE"}
        parts = conninfo_to_dict(self.url_of(database))
        connection = {names[name]: str(value) for name, value in parts.items() if name in names and value is not None}
        done = subprocess.run(
            [str(self._psql), "-X", "-v", "ON_ERROR_STOP=1", "-f", str(path)],
            check=False,
            env=clean_environment() | connection | {"PGCLIENTENCODING": "UTF8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise LocalStackError(f"psql failed on {path}:\n{done.stderr.strip()}")

    def reload_schema(self) -> None:
        """Wait until PostgREST serves the schema as it is now.

        Raises:
            LocalStackError: it did not within 30 seconds, for instance because it was killed.
        """
        schema = "public" if "public" in self._schemas else self._schemas[0]
        name = f"reload_{secrets.token_hex(8)}"
        # PostgREST does not say which state of the schema it holds. But once it knows a function made after
        # that state, it must know the state too. Nobody may call the function, so nobody sees it in the
        # OpenAPI.
        with self._running(self._server).connect() as connection:
            connection.execute(f'create function "{schema}"."{name}"() returns void language sql as $$$$')
            try:
                connection.execute(f'revoke execute on function "{schema}"."{name}"() from public')
                # One that is not listening, because it lost the database, loads the schema when it does again.
                connection.execute("notify pgrst, 'reload schema'")
                if not wait_until(lambda: self._knows(schema, name), _RELOAD_SECONDS):
                    raise LocalStackError(f"PostgREST did not reload its schema within {_RELOAD_SECONDS:.0f} s.")
            finally:
                connection.execute(f'drop function "{schema}"."{name}"()')

    def _knows(self, schema: str, function: str) -> bool:
        headers = {"Content-Profile": schema, "Authorization": f"Bearer {self.key('service_role')}"}
        try:
            answer = httpx.post(f"{self.url}/rpc/{function}", json={}, headers=headers, timeout=5.0, trust_env=False)
        except httpx.TransportError:
            return False
        # Known, but forbidden.
        return bool(answer.status_code in (401, 403) and answer.json().get("code") == "42501")

    def restart_postgres(self, mode: Literal["immediate", "fast"] = "immediate") -> None:
        """Restart Postgres on the same port and wait until it answers; immediate is a crash with recovery.

        PostgREST finds its way back by itself, within seconds.
        """
        if self._postgres is None:
            self._running(self._server)
            raise LocalStackError("The server given by database_url is not ours to restart.")
        self._postgres.restart(mode)

    def kill_postgrest(self) -> None:
        """End PostgREST at once, as a crash would; calls then fail until ``restart_postgrest``."""
        self._running(self._postgrest).kill()

    def restart_postgrest(self) -> None:
        """Start PostgREST on the same port, ending it first where it still runs, and wait until it serves."""
        server = self._running(self._postgrest)
        server.stop()
        server.start(server.port)

    def create_database(self, name: str, template: str | None = None) -> None:
        """Create another database in the server, with what Supabase puts in before the first migration.

        Args:
            name: its name.
            template: copy this database instead, which nobody may be connected to.
        """
        self._running(self._server).create_database(name, template)

    def drop_database(self, name: str) -> None:
        """Drop a database and end the sessions in it."""
        self._running(self._server).drop_database(name)

    def url_of(self, name: str, role: str = "postgres") -> str:
        """Connection URL of a role (postgres, supabase_admin, authenticator) for a database of the server."""
        return self._running(self._server).url_of(name, role)

    @staticmethod
    def _running(part: _Part | None) -> _Part:
        if part is None:
            raise LocalStackError("The stack is not running: use it inside `with LocalSupabase() as local:`.")
        return part
