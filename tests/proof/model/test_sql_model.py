"""Random calls of the SQL functions against the model."""

from collections.abc import Callable, Iterator

import pytest

from processors_v2.local import LocalSupabase
from proof._model.checking import prove_statistics
from proof._model.database import Database
from proof._model.steps import CallingMachine


class SqlMachine(CallingMachine):
    """The functions of krai_core, called as service_role."""


@pytest.fixture
def database(local: LocalSupabase, template: str) -> Iterator[Database]:
    """A database of its own for the machine."""
    name = "model"
    local.create_database(name, template)
    connections = Database(local.url_of(name), local.url_of(name, "supabase_admin"))
    yield connections
    connections.close()
    local.drop_database(name)


@pytest.mark.timeout(7200)
def test_the_functions_do_what_the_model_says(database: Database, run_machine: Callable[..., None]) -> None:
    """In any order of calls, edits and lapses of time, answers and rows are those of the model."""
    SqlMachine.database = SqlMachine.calls = database
    run_machine(SqlMachine, "SQL functions", steps=4000, variable="MODEL_SQL_STEPS")
    prove_statistics(database)
