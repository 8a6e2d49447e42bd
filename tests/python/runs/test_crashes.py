"""Servers that die under a running stage: nothing green that is not in the database, and nothing lost."""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from processors_v2._local.process import wait_until
from processors_v2._sync import transport
from processors_v2.errors import DatabaseUnavailable, StageLost
from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import StageContext, StageTracker


@pytest.fixture(scope="module")
def fragile() -> Iterator[LocalSupabase]:
    """A stack whose servers may be killed."""
    with LocalSupabase() as stack:
        yield stack


@pytest.fixture
def inside(fragile: LocalSupabase, look_into: Any) -> Iterator[Callable[[str, str], dict[str, Any]]]:
    """Read a stage of a document, over a connection of its own."""

    def stage(document: str, name: str) -> dict[str, Any]:
        with look_into(fragile) as database:
            found: dict[str, Any] = database.stage(document, name)
            return found

    with suppress(Exception):
        StageTracker(fragile.client(), retry_for=30).list_stages()
    yield stage
    fragile.restart_postgrest()


@pytest.fixture
def document(fragile: LocalSupabase, look_into: Any) -> str:
    """Id of a new document."""
    with look_into(fragile) as database:
        found: str = database.document()
        return found


@pytest.fixture
def at_first_pause(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Do something when the transport pauses for the first time."""

    def arrange(act: Callable[[], None]) -> None:
        acts = [act]

        def pause(seconds: float) -> None:
            if acts:
                acts.pop()()
            time.sleep(seconds)

        monkeypatch.setattr(transport, "time", SimpleNamespace(sleep=pause))

    return arrange


def test_a_crash_of_postgres_inside_of_a_block(fragile: LocalSupabase, inside: Any, document: str) -> None:
    """A stage whose database crashes and recovers in between is completed with everything that was reported."""
    with StageContext(StageTracker(fragile.client(), retry_for=60), document, "upload") as ctx:
        ctx.update_progress(40, {"before": 1})
        assert wait_until(lambda: inside(document, "upload")["progress"] == 40, 20)
        fragile.restart_postgres("immediate")
        ctx.update_progress(60, {"after": 2})
    stage = inside(document, "upload")
    assert (stage["status"], stage["metadata"]) == ("completed", {"before": 1, "after": 2})


def test_values_reported_while_postgrest_is_dead_arrive(fragile: LocalSupabase, inside: Any, document: str) -> None:
    """Values of an outage are written once PostgREST is back, without a further call of the body."""
    with StageContext(StageTracker(fragile.client()), document, "upload", interval=0.05) as ctx:
        fragile.kill_postgrest()
        for number in range(5):
            ctx.update_progress(number, {f"page{number}": number})
        fragile.restart_postgrest()
        assert wait_until(lambda: inside(document, "upload")["progress"] == 4, 30)
        assert len(inside(document, "upload")["metadata"]) == 5


def test_a_block_that_ends_in_an_outage_waits_for_the_database(
    fragile: LocalSupabase, inside: Any, document: str, at_first_pause: Any
) -> None:
    """PostgREST is dead when the block ends, comes back within the time bound, and the stage is completed."""
    with StageContext(StageTracker(fragile.client(), retry_for=60), document, "upload") as ctx:
        ctx.set_metadata("pages", 3)
        fragile.kill_postgrest()
        at_first_pause(fragile.restart_postgrest)
    stage = inside(document, "upload")
    assert (stage["status"], stage["metadata"]) == ("completed", {"pages": 3})


def test_a_database_that_stays_away_ends_the_block_with_an_error(
    fragile: LocalSupabase, inside: Any, document: str
) -> None:
    """A completion that could not be recorded raises DatabaseUnavailable; the stage is not green and can run again."""
    with (
        pytest.raises(DatabaseUnavailable, match="complete_stage: no answer from"),
        StageContext(StageTracker(fragile.client(), retry_for=0.3), document, "upload", lease_seconds=1),
    ):
        fragile.kill_postgrest()
    assert inside(document, "upload")["status"] == "processing"
    fragile.restart_postgrest()
    again = StageTracker(fragile.client())
    assert wait_until(lambda: again.start_stage(document, "upload"), 20)


def test_an_exception_in_an_outage_comes_out_with_a_note(fragile: LocalSupabase, inside: Any, document: str) -> None:
    """The exception of the block is what is raised, and says that it could not be recorded."""
    with (
        pytest.raises(ValueError, match="page 3") as caught,
        StageContext(StageTracker(fragile.client(), retry_for=0.3), document, "upload"),
    ):
        fragile.kill_postgrest()
        raise ValueError("page 3")
    assert "the failure of stage upload was not recorded: rpc/fail_stage: no answer" in caught.value.__notes__[0]
    assert inside(document, "upload")["status"] == "processing"


def test_a_lease_that_ended_in_an_outage_is_not_overwritten(
    fragile: LocalSupabase, inside: Any, document: str, look_into: Any, at_first_pause: Any
) -> None:
    """A stage that another took over while this worker was cut off ends with StageLost here, and stays the other's."""

    def come_back() -> None:
        fragile.restart_postgrest()
        with look_into(fragile) as database:
            database.end_lease(document, "upload")
            database.one("select krai_core.start_stage(%s, 'upload')", document)

    tracker = StageTracker(fragile.client(), retry_for=60)
    with pytest.raises(StageLost), StageContext(tracker, document, "upload", lease_seconds=600) as ctx:
        ctx.set_metadata("by", "the old one")
        fragile.kill_postgrest()
        at_first_pause(come_back)
    stage = inside(document, "upload")
    assert (stage["status"], stage["metadata"]) == ("processing", {})
