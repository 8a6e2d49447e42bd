"""Progress of a context: at once, then seldom, and the last value always."""

from typing import Any

import pytest

from processors_v2._local.process import wait_until
from processors_v2.errors import InvalidArgument
from processors_v2.stage_tracker import StageContext, StageTracker

FOREVER = 3600.0


def writes(proxy: Any) -> int:
    """How many writes of progress have passed."""
    return int(proxy.requests.count("update_stage_progress"))


def test_the_first_value_is_written_at_once(tracker: StageTracker, document: str, db: Any) -> None:
    """The first value is in the database while the body waits, however long the interval is."""
    with StageContext(tracker, document, "upload", interval=FOREVER) as ctx:
        ctx.update_progress(12.5, {"pages_processed": 1})
        assert wait_until(lambda: db.stage(document, "upload")["progress"] == 12.5, 20)
        assert db.stage(document, "upload")["metadata"] == {"pages_processed": 1}


def test_the_last_value_is_written_while_the_body_goes_on(tracker: StageTracker, document: str, db: Any) -> None:
    """After a burst of values the last one arrives by itself, while the body does something else."""
    with StageContext(tracker, document, "upload", interval=0.05) as ctx:
        for number in range(90):
            ctx.update_progress(number, {"pages_processed": number})
        assert wait_until(lambda: db.stage(document, "upload")["progress"] == 89, 20)
        assert db.stage(document, "upload")["metadata"] == {"pages_processed": 89}


def test_the_last_value_is_written_on_failure(tracker: StageTracker, document: str, db: Any) -> None:
    """A failed stage shows how far it came, also where the interval was not over."""
    with pytest.raises(ValueError, match="page 63"), StageContext(tracker, document, "upload", interval=FOREVER) as ctx:
        for number in range(63):
            ctx.update_progress(number, {"pages_processed": number})
        raise ValueError("page 63")
    stage = db.stage(document, "upload")
    assert (stage["progress"], stage["metadata"]) == (62, {"pages_processed": 62})


def test_a_hundred_thousand_values_cause_a_handful_of_writes(
    through: StageTracker, proxy: Any, document: str, db: Any
) -> None:
    """However many values a loop reports, one write per interval goes out, and the metadata of the last is stored."""
    with StageContext(through, document, "upload", interval=FOREVER) as ctx:
        for number in range(100_000):
            ctx.update_progress(number / 1000, {"pages_processed": number})
    assert writes(proxy) <= 1
    assert db.stage(document, "upload")["metadata"] == {"pages_processed": 99_999}


def test_metadata_of_values_in_between_is_not_lost(tracker: StageTracker, document: str, db: Any) -> None:
    """Values that were passed over take their progress with them, not their metadata."""
    with StageContext(tracker, document, "upload", interval=0.05) as ctx:
        for number in range(20):
            ctx.update_progress(number, {f"page{number}": number})
        assert wait_until(lambda: len(db.stage(document, "upload")["metadata"]) == 20, 20)


def test_none_keeps_the_progress(tracker: StageTracker, document: str, db: Any) -> None:
    """update_progress(None) and set_metadata store metadata and leave the percentage alone."""
    with StageContext(tracker, document, "upload", interval=0) as ctx:
        ctx.update_progress(40)
        ctx.update_progress(None, {"a": 1})
        ctx.set_metadata("b", 2)
        assert wait_until(lambda: db.stage(document, "upload")["metadata"] == {"a": 1, "b": 2}, 20)
        assert db.stage(document, "upload")["progress"] == 40


def test_progress_is_a_sign_of_life(through: StageTracker, proxy: Any, document: str, db: Any) -> None:
    """While progress is written, no heartbeat is sent beside it, and the lease is renewed."""
    with StageContext(through, document, "upload", interval=0.05, lease_seconds=600) as ctx:
        db.one(
            "update krai_core.stage_runs set lease_expires_at = clock_timestamp() + interval '1 minute'"
            " where document_id = %s returning id",
            document,
        )
        ctx.update_progress(1)
        left = "lease_expires_at > clock_timestamp() + interval '9 minutes'"
        assert wait_until(lambda: db.run(document, "upload", left), 20)
    assert "heartbeat" not in proxy.requests


def test_a_list_is_tracked(tracker: StageTracker, document: str, db: Any) -> None:
    """track gives every item, and the progress of those that are done."""
    seen = []
    with StageContext(tracker, document, "upload", interval=0) as ctx:
        for item in ctx.track(["a", "b", "c", "d"]):
            seen.append(item)
            if item == "b":
                assert wait_until(lambda: db.stage(document, "upload")["progress"] == 25, 20)
        assert wait_until(lambda: db.stage(document, "upload")["progress"] == 100, 20)
        assert db.stage(document, "upload")["metadata"] == {}
    assert seen == ["a", "b", "c", "d"]


def test_a_generator_is_tracked_with_its_total(tracker: StageTracker, document: str, db: Any) -> None:
    """track takes the number of items where the iterable does not know it, and counts under the name of the unit."""
    with pytest.raises(RuntimeError), StageContext(tracker, document, "upload") as ctx:
        for item in ctx.track((n for n in range(8)), total=8, unit="pages"):
            if item == 3:
                raise RuntimeError
    stage = db.stage(document, "upload")
    assert stage["progress"] == 37.5
    assert stage["metadata"] == {"pages_processed": 3, "total_pages": 8}


def test_a_generator_without_total_is_refused_at_once(tracker: StageTracker, document: str) -> None:
    """track of something without len() and without total raises before anything is taken from it."""
    generator = iter(range(3))
    with pytest.raises(InvalidArgument, match="needs a total"), StageContext(tracker, document, "upload") as ctx:
        ctx.track(generator)
    assert next(generator) == 0


@pytest.mark.parametrize(("total", "last"), [(3, 6), (0, 6), (-1, 6), (12, 12)])
def test_a_wrong_total_harms_nothing(tracker: StageTracker, document: str, db: Any, total: int, last: int) -> None:
    """A total that is too small grows with the items, one that is too large leaves the progress below 100."""
    with pytest.raises(StopIteration), StageContext(tracker, document, "upload") as ctx:
        for _ in ctx.track(iter(range(6)), total=total, unit="pages"):
            pass
        raise StopIteration
    stage = db.stage(document, "upload")
    assert stage["progress"] == 100 * 6 / last
    assert stage["metadata"] == {"pages_processed": 6, "total_pages": last}


def test_nothing_to_track_is_fine(tracker: StageTracker, document: str, db: Any) -> None:
    """An empty iterable reports nothing."""
    with StageContext(tracker, document, "upload") as ctx:
        assert list(ctx.track([])) == []
    assert db.stage(document, "upload")["status"] == "completed"


def test_leaving_a_tracked_loop_early_keeps_the_last_count(tracker: StageTracker, document: str, db: Any) -> None:
    """A break out of the loop leaves the item at hand uncounted."""
    with StageContext(tracker, document, "upload") as ctx:
        for number in ctx.track(range(10), unit="pages"):
            if number == 4:
                break
    assert db.stage(document, "upload")["metadata"] == {"pages_processed": 4, "total_pages": 10}
