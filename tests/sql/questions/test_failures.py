"""get_failures: what failed, in groups of errors that differ in ids, digits and paths only."""

import datetime as dt
import uuid
from collections.abc import Callable
from typing import Any

import pytest

GROUP_KEYS = {"stage_name", "fingerprint", "count", "first_at", "last_at", "max_attempt", "error", "sample"}


def fail(sql: Any, *errors: str | None, stage: str = "upload") -> list[uuid.UUID]:
    """A document for each error, failed one after the other."""
    documents = [sql.document() for _ in errors]
    for document, error in zip(documents, errors, strict=True):
        sql.call("start_stage", document, stage)
        sql.call("fail_stage", document, stage, error)
    return documents


def groups(sql: Any, *arguments: object, **named: object) -> list[dict[str, Any]]:
    """The groups of the answer."""
    found: list[dict[str, Any]] = sql.call("get_failures", *arguments, **named)["groups"]
    return found


SAME: dict[str, tuple[str, ...]] = {
    "uuids": (
        "document 3f2504e0-4f89-11d3-9a0c-0305e82c3301 is locked",
        "document 00000000-0000-0000-0000-000000000000 is locked",
        "document A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11 is locked",
    ),
    "hexadecimal numbers": ("segfault at 0x7f3b2c001a20 in libtiff", "segfault at 0xdeadbeef in libtiff"),
    "digests": (
        "checksum d41d8cd98f00b204e9800998ecf8427e does not fit",
        "checksum 0cc175b9c0f1b6a831c399e269772661 does not fit",
    ),
    "numbers": ("page 7 of 4386 is empty", "page 1204 of 99 is empty", "page 0 of 1 is empty"),
    "fractions": ("took 12.5 s, allowed are 10", "took 0.731 s, allowed are 9"),
    "paths": ("no such file: /srv/in/a.pdf", "no such file: /var/lib/other/b.pdf", "no such file: /x"),
    "windows paths": (r"no such file: C:\in\a.pdf", r"no such file: D:\elsewhere\deep\b.tiff"),
    "addresses": ("GET https://host/a/1?x=2 answered 500", "GET https://other.example/b answered 502"),
    "quoted paths": ("cannot open '/srv/in/a.pdf'", "cannot open '/b.pdf'", "cannot open '/var/lib/x/y/z'"),
    "times": ("timeout at 2025-10-04T08:00:00Z", "timeout at 2026-11-24T23:59:59.123456Z"),
    "spaces at the ends": ("  disk full", "disk full\n"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SAME)
def test_errors_that_differ_in_particulars_are_one_group(service, kind: str) -> None:
    """Ids, hexadecimal and decimal numbers, paths, addresses and times do not tell errors apart."""
    fail(service, *SAME[kind])
    (group,) = groups(service)
    assert group["count"] == len(SAME[kind])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("no such file: /a", "permission denied: /a"),
        ("page 1 is empty", "page 1 is damaged"),
        ("OCR timeout", "OCR engine timeout"),
        ("disk full", "failed without a message"),
        ("KeyError: 'manufacturer'", "KeyError: 'model'"),
        ("read and/or write", "read and write"),
    ],
)
def test_different_errors_are_different_groups(service, one: str, other: str) -> None:
    """What says another thing is another group."""
    fail(service, one, other)
    assert [group["count"] for group in groups(service)] == [1, 1]
    assert len({group["fingerprint"] for group in groups(service)}) == 2


def test_the_same_error_in_two_stages_is_two_groups(service) -> None:
    """Groups are of a stage; with p_stage_name only those of it are told."""
    fail(service, "disk full", "disk full")
    fail(service, "disk full", stage="storage")
    assert sorted((group["stage_name"], group["count"]) for group in groups(service)) == [("storage", 1), ("upload", 2)]
    (group,) = groups(service, "storage")
    assert (group["stage_name"], group["count"]) == ("storage", 1)


def test_a_group_tells_its_count_times_attempts_and_newest_sample(service) -> None:
    """Every field: first and last time, most attempts, the folded error, and the newest of its documents."""
    first, second = fail(service, "page 7 of 12 is empty", "page 123 of 9 is empty")
    service.call("start_stage", second, "upload")
    service.call("fail_stage", second, "upload", "page 8 of 12 is empty")
    answer = service.call("get_failures")
    assert set(answer) == {"groups", "looked_at", "is_all"}
    assert (answer["looked_at"], answer["is_all"]) == (2, True)
    (group,) = answer["groups"]
    assert set(group) == GROUP_KEYS
    assert (group["stage_name"], group["count"], group["max_attempt"]) == ("upload", 2, 2)
    assert isinstance(group["fingerprint"], str)
    assert group["sample"] == {"document_id": str(second), "attempt": 2, "error": "page 8 of 12 is empty"}
    assert "empty" in group["error"]
    assert not any(digit in group["error"] for digit in "123456789")
    assert group["first_at"] == service.stage(first, "upload")["completed_at"]
    assert group["last_at"] == service.stage(second, "upload")["completed_at"]


def test_what_failed_and_was_settled_is_not_told(service) -> None:
    """Only stages that are failed now: retried, reset, completed and deleted ones are in no group."""
    documents = fail(service, *["x"] * 5)
    service.call("retry_stage", documents[0], "upload")
    service.call("reset_stage", documents[1], "upload")
    service.call("complete_stage", documents[2], "upload")
    service.run("delete from krai_core.documents where id = %s", documents[3])
    (group,) = groups(service)
    assert (group["count"], group["sample"]["document_id"]) == (1, str(documents[4]))


def test_failures_of_every_origin_are_told(alone, outcome: Callable) -> None:
    """By a single call, in bulk, with a retry to come, given up by reap, edited and inserted as failed."""
    alone.run("update krai_core.stages set max_attempts = 1 where name = 'storage'")
    fail(alone, "single")
    alone.document()
    alone.finish(*(outcome(run, "failed", error="bulk", retry=True) for run in alone.claim()))
    lost = alone.document()
    alone.done(lost, "upload", "image_processing")
    alone.claim("storage")
    alone.end_lease(lost, "storage")
    alone.call("reap")
    alone.document(stage_status={"upload": {"status": "failed", "error": "inserted"}})
    edited = alone.document()
    alone.edit(edited, {"upload": {"status": "failed", "error": "edited"}})
    errors = {group["sample"]["error"].split(" ")[0] for group in groups(alone)}
    assert errors == {"single", "bulk", "the", "inserted", "edited"}


def test_an_error_that_changes_goes_to_its_new_group(service) -> None:
    """A failed stage that takes a new error is counted there, and no longer in its old group."""
    (document,) = fail(service, "disk full")
    service.call("fail_stage", document, "upload", "no access")
    (group,) = groups(service)
    assert (group["count"], group["sample"]["error"]) == (1, "no access")


def test_failures_since_a_time(service) -> None:
    """p_since leaves out what failed earlier; groups are told the largest first."""
    fail(service, "old", "old")
    since = service.value("select clock_timestamp()")
    fail(service, "new", "newer", "newer", "newer")
    found = groups(service, None, since)
    assert [(group["sample"]["error"], group["count"]) for group in found] == [("newer", 3), ("new", 1)]
    assert groups(service, None, since + dt.timedelta(hours=1)) == []


def test_the_limit_bounds_the_groups_and_not_what_is_counted(service) -> None:
    """p_limit cuts the smaller groups off; looked_at still says how many failures there were."""
    for word in ("alpha", "beta", "gamma"):
        fail(service, *[word] * (1 + len(word)))
    answer = service.call("get_failures", p_limit=1)
    assert [group["sample"]["error"] for group in answer["groups"]] in (["alpha"], ["gamma"])
    assert (answer["looked_at"], answer["is_all"]) == (6 + 5 + 6, True)


def test_more_than_ten_thousand_failures_are_not_all_looked_at(alone) -> None:
    """Of 10,500 failures the newest 10,000 are grouped, and the answer says that it is not all."""
    alone.run(
        "insert into krai_core.documents (filename, stage_status) select 'x', jsonb_build_object('upload', "
        "jsonb_build_object('status', 'failed', 'error', case when n <= 500 then 'oldest' else 'newer' end, "
        "'completed_at', '2025-10-04T08:00:00.000000Z'::timestamptz + n * interval '1 s')) "
        "from generate_series(1, 10500) n"
    )
    answer = alone.call("get_failures")
    assert (answer["looked_at"], answer["is_all"]) == (10_000, False)
    (group,) = answer["groups"]
    assert (group["count"], group["sample"]["error"]) == (10_000, "newer")


@pytest.mark.parametrize(
    "error", [None, "", "  \n", "x" * 70_000, "Zeilenumbruch\n\tin der\r\nMitte äöü 🙂", "%s {} \\ '\""]
)
def test_errors_of_any_kind_have_a_group(service, error: str | None) -> None:
    """Nothing, blanks, 70,000 letters, line breaks and odd letters: each has its group, shortened where it is long."""
    fail(service, error)
    (group,) = groups(service)
    assert group["count"] == 1
    assert len(group["error"]) < 5000


@pytest.mark.parametrize(
    ("arguments", "named", "word"),
    [
        (("nonsense",), {}, "unknown_stage"),
        ((), {"p_limit": 0}, "invalid_limit"),
        ((), {"p_limit": 100_000}, "invalid_limit"),
    ],
)
def test_wrong_arguments_are_refused(service, arguments: tuple, named: dict, word: str) -> None:
    """An unknown stage and a limit out of range are 22023."""
    refusal = service.refused("get_failures", *arguments, **named)
    assert (refusal.sqlstate, refusal.word) == ("22023", word)
