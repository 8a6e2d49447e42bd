"""Roles and databases of a server, ours or one that was there before, prepared as Supabase prepares them."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from processors_v2._local.process import LocalStackError

_API_ROLES = ("anon", "authenticated", "service_role")
_HERE = Path(__file__).parent


def url(host: str, port: int, user: str, password: str, database: str) -> str:
    """Write a connection URL; all parts but the password are names that need no quoting here."""
    return f"postgresql://{user}:{password}@{host}:{port}/{database}"


def url_to_database(conninfo: str, database: str, role: str | None = None) -> str:
    """Point a connection string at another database, and let it act as another role from the start."""
    parts: dict[str, Any] = {**conninfo_to_dict(conninfo), "dbname": database}
    if role is not None:
        parts["options"] = f"{parts.get('options') or ''} -c role={role}".strip()
    # libpq takes all of it as query parameters, which quote every character by one rule.
    query = "&".join(f"{name}={_percent(str(value))}" for name, value in parts.items() if value is not None)
    return f"postgresql://?{query}"


def _percent(text: str) -> str:
    return "".join(
        char
        if char.isascii() and (char.isalnum() or char in "-._~")
        else "".join(f"%{byte:02X}" for byte in char.encode())
        for char in text
    )


class Server:
    """A Postgres server, seen by somebody with the rights of an administrator.

    Args:
        admin_url: connection URL of the administrator.
        owned: whether the server is ours alone. Then roles get passwords; elsewhere theirs stay as they are,
            and PostgREST gets a login of its own, which ``close`` drops.
    """

    def __init__(self, admin_url: str, *, owned: bool) -> None:
        self.admin_url = admin_url
        self._owned = owned
        self._login: str | None = None
        self._passwords: dict[str, str] = {}
        parts = conninfo_to_dict(admin_url)
        self._address = (str(parts.get("host") or "127.0.0.1"), int(parts.get("port") or 5432))
        self.database = str(parts.get("dbname") or parts.get("user") or "postgres")

    @contextmanager
    def connect(self, database: str | None = None) -> Iterator[psycopg.Connection[Any]]:
        """Open a connection of the administrator, in autocommit, and close it."""
        target = self.admin_url if database is None else url_to_database(self.admin_url, database)
        try:
            connection = psycopg.connect(target, autocommit=True, connect_timeout=10)
        except psycopg.OperationalError as error:
            raise LocalStackError(f"The Postgres server cannot be reached: {error}") from error
        with connection:
            yield connection

    def prepare(self) -> None:
        """Create the roles and schemas that are missing; on a server of ours also set owner and passwords."""
        with self.connect() as connection:
            connection.execute((_HERE / "roles.sql").read_bytes())
            if self._owned:
                for role in ("postgres", "authenticator"):
                    self._passwords[role] = secrets.token_urlsafe(24)
                    connection.execute(
                        sql.SQL("alter role {} password {}").format(sql.Identifier(role), self._passwords[role])
                    )
                connection.execute(sql.SQL("alter database {} owner to postgres").format(sql.Identifier(self.database)))
            connection.execute((_HERE / "database.sql").read_bytes())

    def authenticator_url(self) -> str:
        """Connection URL for PostgREST."""
        if self._owned:
            return self.url_of(self.database, "authenticator")
        if self._login is None:
            # The password of an existing authenticator is not known, and changing it would cut off its
            # PostgREST.
            login, password = f"stage_tracker_{secrets.token_hex(6)}", secrets.token_urlsafe(24)
            with self.connect() as connection:
                connection.execute(
                    sql.SQL("create role {} login noinherit password {} in role {}").format(
                        sql.Identifier(login), password, sql.SQL(", ").join(map(sql.Identifier, _API_ROLES))
                    )
                )
                self._login = login
                for setting in ("statement_timeout", "lock_timeout"):
                    connection.execute(
                        sql.SQL("alter role {} set {} = '8s'").format(sql.Identifier(login), sql.Identifier(setting))
                    )
            self._passwords[login] = password
        parts = {"user": self._login, "password": self._passwords[self._login]}
        return url_to_database(psycopg.conninfo.make_conninfo(self.admin_url, **parts), self.database)

    def url_of(self, database: str, role: str) -> str:
        """Connection URL of a role for a database.

        On a server that is not ours, passwords are not known: the URL logs in as the administrator and acts
        as the role.
        """
        host, port = self._address
        if role in self._passwords:
            return url(host, port, role, self._passwords[role], database)
        user = conninfo_to_dict(self.admin_url).get("user")
        if role == user:
            return self.admin_url if database == self.database else url_to_database(self.admin_url, database)
        return url_to_database(self.admin_url, database, role)

    def create_database(self, name: str, template: str | None) -> None:
        """Create a database that belongs to postgres, ready for migrations, or as a copy of another one."""
        with self.connect() as connection:
            copied = sql.SQL("") if template is None else sql.SQL(" template {}").format(sql.Identifier(template))
            connection.execute(sql.SQL("create database {} owner postgres{}").format(sql.Identifier(name), copied))
        if template is None:
            with self.connect(name) as connection:
                connection.execute((_HERE / "database.sql").read_bytes())

    def drop_database(self, name: str) -> None:
        """Drop a database and end the sessions in it."""
        with self.connect() as connection:
            connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))

    def close(self) -> None:
        """Drop the login that PostgREST had, if there was one."""
        if self._login is not None:
            login, self._login = self._login, None
            with self.connect() as connection:
                connection.execute(sql.SQL("drop role {}").format(sql.Identifier(login)))
