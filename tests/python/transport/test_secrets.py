"""No key in any message, repr, traceback, log record or pickle."""

import logging
import pickle
import traceback
from typing import Any

import pytest
import supabase

from processors_v2.errors import ConfigurationError, StageTrackerError
from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import StageContext, StageTracker

FAULTS = {
    "refused by the gateway": [(401, {"message": "Invalid API key"})],
    "another server": ["page"],
    "lost answer": ["drop"],
    "away": ["html"] * 50,
    "conflict": [],
}


def everything_of(error: BaseException) -> str:
    """All the texts that an exception and what it came from can show."""
    texts = ["".join(traceback.format_exception(error)), repr(error), str(error), repr(vars(error))]
    while error is not None:
        texts += [repr(error), str(error), repr(error.args), repr(getattr(error, "__notes__", ""))]
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return "\n".join(texts)


@pytest.mark.parametrize("fault", FAULTS)
def test_no_key_in_what_an_error_shows(
    proxy: Any, gateway_client: supabase.Client, document: str, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Message, traceback, notes, pickle and the log at its finest show no key, nor the request's headers."""
    key = str(gateway_client.supabase_key)
    tracker = StageTracker(gateway_client, timeout=0.5, retry_for=0.2)
    proxy.faults = list(FAULTS[fault])
    with caplog.at_level(logging.DEBUG), pytest.raises(StageTrackerError) as caught:
        tracker.update_progress(document, "upload", 1)
        tracker.start_stage(document, "upload")
        tracker.start_stage(document, "upload", lease_seconds=-1)
    shown = everything_of(caught.value) + caplog.text + repr([vars(record) for record in caplog.records])
    assert key.split(".")[2] not in shown
    assert key.encode() not in pickle.dumps(caught.value)


@pytest.mark.parametrize("wrong", ["\n", "\r\n", "\u2028", "é", "\0"])
def test_no_key_in_the_complaint_about_the_key(local: LocalSupabase, document: str, wrong: str) -> None:
    """A key that no HTTP header can carry is refused in a sentence that does not repeat it."""
    secret = "sb_secret_0123456789abcdef"
    client = supabase.create_client(local.url, f"{secret}{wrong}")
    with pytest.raises(ConfigurationError, match="cannot be sent.*line break") as caught:
        StageTracker(client, retry_for=0).start_stage(document, "upload")
    assert secret not in everything_of(caught.value)


def test_no_key_in_a_repr(gateway_client: supabase.Client, document: str) -> None:
    """Tracker, transport and context show the URL and no key."""
    tracker = StageTracker(gateway_client)
    shown = repr([tracker, tracker._transport, StageContext(tracker, document, "upload")])
    assert str(gateway_client.supabase_key).split(".")[2] not in shown
    assert "127.0.0.1" in shown


@pytest.mark.parametrize(
    "make", [lambda t, _: t, lambda t, d: StageContext(t, d, "upload")], ids=["tracker", "context"]
)
def test_a_tracker_is_not_pickled(gateway_client: supabase.Client, document: str, make: Any) -> None:
    """Pickling a tracker, or a context with its tracker, is refused and says what to do in the other process."""
    with pytest.raises(TypeError, match=r"holds a key and is not pickled.*from_env"):
        pickle.dumps(make(StageTracker(gateway_client), document))
