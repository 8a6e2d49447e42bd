"""How much larger tables and indexes are than the same rows freshly written."""

import dataclasses

import psycopg

# TOAST tables go with the table that they belong to; its rows are what they hold.
_RELATIONS = """
select c.relname, c.relkind = 'i' as is_index, pg_table_size(c.oid) from pg_class c
where c.relnamespace = 'krai_core'::regnamespace and c.relkind in ('r', 'i') order by c.relname
"""


@dataclasses.dataclass(frozen=True)
class Relation:
    """A table or an index.

    Attributes:
        name: of it.
        is_index: or a table.
        used: bytes on disk, as it was left.
        needed: bytes on disk once it was written anew.
    """

    name: str
    is_index: bool
    used: int
    needed: int

    @property
    def times(self) -> float:
        """How many times the bytes that are needed; of nothing, a page is needed."""
        return self.used / max(self.needed, 8192)


def measure(connection: "psycopg.Connection[tuple[object, ...]]") -> list[Relation]:
    """Write all tables of the tracker and their indexes anew, and say how large they were and are.

    Args:
        connection: of a superuser, in autocommit; nobody else may be at work.
    """
    before = connection.execute(_RELATIONS).fetchall()
    for name, is_index, _ in before:
        if not is_index:
            # Goes by fillfactor, and builds the indexes, too.
            connection.execute(f'vacuum full krai_core."{name}"')
    after = {str(name): int(str(size)) for name, _, size in connection.execute(_RELATIONS).fetchall()}
    return [Relation(str(name), bool(is_index), int(str(size)), after[str(name)]) for name, is_index, size in before]
