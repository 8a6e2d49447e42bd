"""Faults of the network: what is sent again, what is not, and for how long."""

import uuid
from types import SimpleNamespace
from typing import Any

import pytest
import supabase

from processors_v2._local.process import wait_until
from processors_v2._sync import transport
from processors_v2._transport import retries
from processors_v2.errors import DatabaseUnavailable, StageConflict
from processors_v2.stage_tracker import StageContext, StageTracker

CLAIM = uuid.UUID("11111111-2222-4333-8444-555555555555")

REPEATABLE: dict[str, Any] = {
    "start with claim id": lambda t, d: t.start_stage(d, "upload", claim_id=CLAIM) is True,
    "progress": lambda t, d: t.update_progress(d, "storage", 30) is True,
    "complete": lambda t, d: t.complete_stage(d, "storage") is True,
    "fail": lambda t, d: t.fail_stage(d, "storage", "R2 is away") is True,
    "skip": lambda t, d: t.skip_stage(d, "storage") is True,
    "status": lambda t, d: t.get_document_status(d)["document_id"] == d,
    "stages": lambda t, _: len(t.list_stages()) == 8,
}

ONCE: dict[str, Any] = {
    "start without claim id": lambda t, d: t.start_stage(d, "upload"),
    "retry": lambda t, d: t.retry_stage(d, "embedding"),
    "reset": lambda t, d: t.reset_stage(d, "embedding"),
}

NEVER_RAN = [(503, "PGRST000"), (503, "PGRST002"), (504, "PGRST003"), (503, "53300"), (500, "40P01"), (500, "55P03")]
MAY_HAVE_RUN = [(503, "PGRST001"), (503, "57P01"), (503, "08006")]


@pytest.fixture
def prepared(db: Any, rest: StageTracker) -> str:
    """A document with a running stage (storage) and a failed one (embedding)."""
    document: str = db.document()
    rest.start_stage(document, "storage")
    rest.fail_stage(document, "embedding", "no model")
    return document


@pytest.fixture(autouse=True)
def no_jitter(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses that are the shortest they can be, but kept in a list as the longest."""
    pauses: list[float] = []

    def uniform(_: float, longest: float) -> float:
        pauses.append(longest)
        return 0.0

    monkeypatch.setattr(retries.random, "uniform", uniform)
    return pauses


@pytest.mark.parametrize("fault", ["cut", "drop", "html", "json"])
@pytest.mark.parametrize("call", REPEATABLE)
def test_a_call_that_may_be_repeated_survives_a_fault(
    through: StageTracker, proxy: Any, prepared: str, call: str, fault: str
) -> None:
    """A repeatable call is sent again after any fault of the network, and answers as if there had been none."""
    proxy.faults = [fault]
    assert REPEATABLE[call](through, prepared)
    assert len(proxy.requests) == 2


@pytest.mark.parametrize("call", ["start with claim id", "complete", "status"])
def test_a_call_that_may_be_repeated_is_when_no_answer_comes(
    gateway_client: supabase.Client, proxy: Any, prepared: str, call: str
) -> None:
    """After timeout seconds without an answer a repeatable call is sent again."""
    proxy.faults = ["late"]
    assert REPEATABLE[call](StageTracker(gateway_client, timeout=1), prepared)
    assert len(proxy.requests) == 2


def test_a_plain_start_is_not_repeated_when_no_answer_comes(
    gateway_client: supabase.Client, proxy: Any, prepared: str, db: Any
) -> None:
    """A plain start without an answer in time is sent once, though it took effect."""
    proxy.faults = ["late"]
    with pytest.raises(DatabaseUnavailable, match=r"ReadTimeout.*not known whether"):
        StageTracker(gateway_client, timeout=1).start_stage(prepared, "upload")
    assert len(proxy.requests) == 1
    assert db.stage(prepared, "upload")["status"] == "processing"


@pytest.mark.parametrize("answer", NEVER_RAN + MAY_HAVE_RUN, ids=lambda answer: answer[1])
def test_a_repeatable_call_survives_a_database_in_trouble(
    through: StageTracker, proxy: Any, prepared: str, answer: tuple[int, str]
) -> None:
    """Every code by which PostgREST or Postgres says that it is not at its best leads to another try."""
    proxy.faults = [(answer[0], {"code": answer[1], "message": "later", "details": None, "hint": None})]
    assert through.complete_stage(prepared, "storage") is True
    assert len(proxy.requests) == 2


def test_several_faults_in_a_row_are_survived(through: StageTracker, proxy: Any, prepared: str) -> None:
    """A call is repeated as often as it takes."""
    proxy.faults = ["html", "cut", "drop", "json", (504, {"code": "PGRST003", "message": "pool full"})]
    assert through.complete_stage(prepared, "storage") is True
    assert len(proxy.requests) == 6


def test_a_repeated_start_with_claim_id_makes_one_run(
    through: StageTracker, proxy: Any, prepared: str, db: Any
) -> None:
    """A start whose answer was lost is True the second time, and there is one run."""
    proxy.faults = ["drop", "drop"]
    assert through.start_stage(prepared, "upload", claim_id=CLAIM) is True
    assert (
        db.one("select count(*) from krai_core.stage_runs where document_id = %s and claim_id = %s", prepared, CLAIM)
        == 1
    )


def test_a_context_starts_through_a_lost_answer(through: StageTracker, proxy: Any, prepared: str, db: Any) -> None:
    """The answers to start and complete of a context may both get lost."""
    proxy.faults = ["drop"]
    with StageContext(through, prepared, "upload"):
        proxy.faults, proxy.only = ["drop"], "complete_stage"
    assert db.stage(prepared, "upload")["status"] == "completed"
    assert proxy.faults == []


@pytest.mark.parametrize("fault", ["cut", "drop", "html", "json"])
@pytest.mark.parametrize("call", ONCE)
def test_a_call_that_may_have_run_is_not_repeated(
    through: StageTracker, proxy: Any, prepared: str, call: str, fault: str
) -> None:
    """Without a credential to know it by, a call that may have taken effect is sent once, and the error says so."""
    proxy.faults = [fault]
    with pytest.raises(DatabaseUnavailable, match="after 1 try. It is not known whether the call took effect"):
        ONCE[call](through, prepared)
    assert len(proxy.requests) == 1


@pytest.mark.parametrize("answer", MAY_HAVE_RUN, ids=lambda answer: answer[1])
def test_a_plain_start_is_not_repeated_when_the_connection_broke(
    through: StageTracker, proxy: Any, prepared: str, answer: tuple[int, str]
) -> None:
    """A code that leaves open whether the call ran ends a call that must not run twice."""
    proxy.faults = [(answer[0], {"code": answer[1], "message": "gone"})]
    with pytest.raises(DatabaseUnavailable, match="not known"):
        through.start_stage(prepared, "upload")
    assert len(proxy.requests) == 1


def test_an_error_without_code_and_words_is_a_connection_that_broke(
    through: StageTracker, proxy: Any, prepared: str
) -> None:
    """What PostgREST answers when Postgres crashes under way may have run, and is repeated if it can be."""
    nothing = (400, {"code": "", "details": None, "hint": None, "message": ""})
    proxy.faults = [nothing]
    assert through.complete_stage(prepared, "storage") is True
    proxy.faults = [nothing]
    with pytest.raises(DatabaseUnavailable, match="not known"):
        through.start_stage(prepared, "upload")


@pytest.mark.parametrize("answer", NEVER_RAN, ids=lambda answer: answer[1])
def test_a_plain_start_is_repeated_when_nothing_ran(
    through: StageTracker, proxy: Any, prepared: str, answer: tuple[int, str]
) -> None:
    """A code that says that nothing ran, or that all was rolled back, leads to another try of any call."""
    proxy.faults = [(answer[0], {"code": answer[1], "message": "full"})]
    assert through.start_stage(prepared, "upload") is True


def test_a_plain_start_is_repeated_when_nobody_listened(
    through: StageTracker, proxy: Any, prepared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused connection has sent nothing: the call goes out when somebody listens again."""
    waits: list[float] = []

    def listen_again(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            proxy.up()

    monkeypatch.setattr(transport, "time", SimpleNamespace(sleep=listen_again))
    proxy.down()
    assert through.start_stage(prepared, "upload") is True
    assert len(waits) == 3


def test_an_error_of_the_rules_is_not_repeated(through: StageTracker, proxy: Any, prepared: str) -> None:
    """A conflict is an answer."""
    with pytest.raises(StageConflict):
        through.update_progress(prepared, "upload", 10)
    assert len(proxy.requests) == 1


class Clock:
    """A clock that goes by sleeping, and by each look at it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        """Return the time."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time go by."""
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the transport, and pauses that are always the longest."""
    clock = Clock()
    monkeypatch.setattr(retries, "time", clock)
    monkeypatch.setattr(transport, "time", clock)
    monkeypatch.setattr(retries.random, "uniform", lambda _, longest: longest)
    return clock


def test_pauses_grow_and_the_whole_is_bounded(gateway_client: supabase.Client, proxy: Any, clock: Clock) -> None:
    """Pauses double up to 2 s, and all of them together stay below retry_for."""
    proxy.faults = ["html"] * 1000
    with pytest.raises(DatabaseUnavailable, match=r"HTTP 502\) after 20 tries"):
        StageTracker(gateway_client, retry_for=30).get_statistics()
    assert clock.slept == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, *[2.0] * 13]
    assert clock.now - 1000 < 30
    assert len(proxy.requests) == 20


def test_pauses_are_spread(gateway_client: supabase.Client, proxy: Any, no_jitter: list[float]) -> None:
    """Each pause is drawn from zero to its longest, so that workers do not come back in step."""
    proxy.faults = ["html"] * 3
    StageTracker(gateway_client).get_statistics()
    assert no_jitter == [0.05, 0.1, 0.2]


def test_without_a_bound_there_is_one_try(gateway_client: supabase.Client, proxy: Any) -> None:
    """retry_for=0 sends a call once."""
    proxy.faults = ["html"]
    with pytest.raises(DatabaseUnavailable, match="after 1 try"):
        StageTracker(gateway_client, retry_for=0).get_statistics()
    assert len(proxy.requests) == 1


def test_one_try_does_not_outlast_the_bound(
    gateway_client: supabase.Client, proxy: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left of retry_for bounds the wait for an answer, and timeout does where that is shorter."""
    tracker = StageTracker(gateway_client, timeout=10, retry_for=12)
    clients: Any = tracker._transport._clients  # type: ignore[attr-defined]
    http, waited = clients.take(), []
    clients.give(http)
    send = http.request

    def request(*args: Any, timeout: float, **kwargs: Any) -> Any:
        waited.append(timeout)
        clock.now += 7
        return send(*args, timeout=5, **kwargs)

    monkeypatch.setattr(http, "request", request)
    proxy.faults = ["html"] * 10
    with pytest.raises(DatabaseUnavailable, match="after 2 tries"):
        tracker.get_statistics()
    assert waited == [10, pytest.approx(4.95)]


def test_progress_that_was_not_written_is_written_later(
    through: StageTracker, proxy: Any, prepared: str, db: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A background write that fails is logged, put back, and tried again; later values join it."""
    proxy.faults, proxy.only = ["html"], "update_stage_progress"
    with StageContext(through, prepared, "upload", interval=0.05) as ctx:
        ctx.update_progress(10, {"a": 1})
        assert wait_until(lambda: "tried again" in caplog.text, 20)
        ctx.update_progress(None, {"b": 2})
        assert wait_until(lambda: db.stage(prepared, "upload")["progress"] == 10, 20)
        assert db.stage(prepared, "upload")["metadata"] == {"a": 1, "b": 2}
