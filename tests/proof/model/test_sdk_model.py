"""Random calls of the SDK over PostgREST against the model."""

from collections.abc import Callable, Iterator

import pytest

from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import StageTracker
from proof._model.checking import prove_statistics
from proof._model.database import Database
from proof._model.sdk import SdkCalls, SdkMachine


@pytest.fixture
def own_stack() -> Iterator[LocalSupabase]:
    """A stack of its own, whose documents come and go."""
    with LocalSupabase() as stack:
        yield stack


@pytest.mark.timeout(7200)
def test_the_sdk_does_what_the_model_says(own_stack: LocalSupabase, run_machine: Callable[..., None]) -> None:
    """In any order of contexts, claimed runs and calls of two trackers, answers and rows are as the model says."""
    database = Database(own_stack.database_url, own_stack.admin_url)
    SdkMachine.clients, SdkMachine.database = own_stack, database
    other = StageTracker(own_stack.client())
    SdkMachine.calls = SdkCalls(other, database)
    run_machine(SdkMachine, "SDK", steps=1500, variable="MODEL_SDK_STEPS")
    prove_statistics(database)
    other.close()
    database.close()
