"""What a worker refuses, before it claims anything."""

import pickle
from typing import Any

import pytest

from processors_v2.errors import (
    AccessDenied,
    ConfigurationError,
    InvalidArgument,
    StageTrackerError,
    UnknownStage,
)
from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import StageTracker
from processors_v2.worker import StageWorker


def nothing(_: object) -> None:
    """Do nothing."""


@pytest.mark.parametrize(
    ("handlers", "options", "words"),
    [
        ({}, {}, "there are no handlers"),
        ([("upload", nothing)], {}, "there are no handlers"),
        ({"upload": "extract"}, {}, "the handler of stage upload is a str, not a function"),
        ({3: nothing}, {}, "stage name 3 is not a text"),
        ({"upload": nothing}, {"concurrency": 0}, "concurrency 0 is not a whole number"),
        ({"upload": nothing}, {"concurrency": 2.5}, "concurrency 2.5 is not a whole number"),
        (
            {"upload": nothing},
            {"concurrency": {"storage": 1}},
            r"names the stages \['storage'\], handlers \['upload'\]",
        ),
        ({"upload": nothing}, {"batch": 0}, "batch=0 is not a number of 1 to 1000"),
        ({"upload": nothing}, {"batch": 1001}, "batch=1001 is not"),
        ({"upload": nothing}, {"idle_max": 0}, "idle_max=0"),
        ({"upload": nothing}, {"reap_seconds": -1}, "reap_seconds=-1"),
        ({"upload": nothing}, {"drain_seconds": -1}, "drain_seconds=-1"),
        ({"upload": nothing}, {"prune_older_than": 30}, "prune_older_than=30 is not a timedelta"),
        ({"upload": nothing}, {"executor": "dask"}, "executor='dask' is no executor"),
        ({"upload": nothing}, {"child_tracker": StageTracker.from_env}, "the handlers run in this process"),
    ],
)
def test_odd_arguments_are_named(rest: StageTracker, handlers: Any, options: dict[str, Any], words: str) -> None:
    """The message holds the value."""
    with pytest.raises((ConfigurationError, InvalidArgument), match=words):
        StageWorker(rest, handlers, **options)


def test_a_client_is_no_tracker(local: LocalSupabase) -> None:
    """The message says what to pass."""
    with pytest.raises(ConfigurationError, match="was given a Client, not a StageTracker"):
        StageWorker(local.client(), {"upload": nothing})  # type: ignore[arg-type]


def test_a_worker_is_not_pickled(rest: StageTracker) -> None:
    """It would carry a key."""
    with pytest.raises(TypeError, match="is not pickled"):
        pickle.dumps(StageWorker(rest, {"upload": nothing}))


@pytest.mark.parametrize(
    ("handlers", "options", "kind"),
    [({"no_such": nothing}, {}, UnknownStage), ({"upload": nothing}, {"lease_seconds": -1}, InvalidArgument)],
)
def test_what_the_database_refuses_ends_run(
    make_tracker: Any, handlers: Any, options: dict[str, Any], kind: type[Exception]
) -> None:
    """A stage that does not exist and a lease that cannot be are raised by run(), not tried for ever."""
    with pytest.raises(kind):
        StageWorker(make_tracker(), handlers, **options).run()


def test_a_key_that_may_not_work_ends_run(local: LocalSupabase) -> None:
    """AccessDenied is raised at once."""
    with pytest.raises(AccessDenied):
        StageWorker(StageTracker(local.client("authenticated")), {"upload": nothing}).run()


def test_an_address_that_is_none_ends_run(proxy: Any, through: StageTracker) -> None:
    """Where nothing of the tracker's has ever answered, run() does not go on asking."""
    proxy.faults = ["page"]
    with pytest.raises(StageTrackerError, match="not as PostgREST does"):
        StageWorker(through, {"upload": nothing}).run()


def test_a_worker_runs_once_at_a_time(rest: StageTracker, run_beside: Any, soon: Any) -> None:
    """A second run() of the same worker is refused, and the first goes on."""
    with run_beside(StageWorker(rest, {"storage": nothing})) as worker:
        soon(worker._is_running.locked)
        with pytest.raises(ConfigurationError, match="running already"):
            worker.run()
