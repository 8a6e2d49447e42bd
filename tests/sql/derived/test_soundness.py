"""_is_sound, _repaired and _stage_state against each other on generated values."""

import json
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

STAGES = [
    "upload", "text_extraction", "image_processing", "classification",
    "metadata_extraction", "storage", "embedding", "search_indexing",
]  # fmt: skip
STATUSES = ["pending", "processing", "completed", "failed", "skipped"]

# Whatever JSON a column can hold: no NUL and no lone surrogates, which jsonb refuses.
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
numbers = st.one_of(
    st.integers(-(10**30), 10**30),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0, -0.0, 100, 100.0, 100.000001, 1e300, 0.1, 99.99]),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)
sound_times = st.datetimes().map(lambda time: time.strftime("%Y").zfill(4) + time.strftime("-%m-%dT%H:%M:%S.%fZ"))
near_times = st.one_of(
    st.from_regex(r"\A[0-2][0-9]{3}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-6][0-9]:[0-6][0-9]\.[0-9]{6}Z\Z"),
    st.from_regex(r"\A20[0-9]{2}-[01][0-9]-[0-3][0-9][ T][0-2][0-9]:[0-5][0-9](\.[0-9]{1,7})?(Z|[+-][0-9]{2})?\Z"),
    st.datetimes(timezones=st.timezones()).map(str),
    st.sampled_from(["now", "today", "epoch", "infinity", "-infinity", "allballs", "2025-10-04T24:00:00.000000Z",
                     "2025-10-04T08:00:60.000000Z", "2025- 1-04T08:00:00.000000Z", "2025-+1-04T08:00:00.000000Z",
                     "2025-10-04T08:00:00.000000Z\n", " 2025-10-04T08:00:00.000000Z", "٢٠٢٥-10-04T08:00:00.000000Z",
                     "2025-10-04 08:00 Mars/Base", "20251004", "J2451187", "04.10.2025", "10/04/2025 08:00 PST"]),
)  # fmt: skip
metadata = st.one_of(st.dictionaries(texts, anything, max_size=2), st.fixed_dictionaries({"v1": anything}))
sound_stages = st.fixed_dictionaries(
    {
        "status": st.sampled_from(STATUSES),
        "started_at": st.none() | sound_times,
        "completed_at": st.none() | sound_times,
        "duration_seconds": st.none() | st.floats(0, 1e9),
        "progress": st.floats(0, 100) | st.integers(0, 100),
        "error": st.none() | texts,
        "metadata": metadata,
    }
)
odd_values = {
    "status": st.one_of(
        st.sampled_from([*STATUSES, "in_progress", "COMPLETED"]),
        st.sampled_from(STATUSES).map(lambda one: [one]),
        anything,
    ),
    "started_at": st.one_of(sound_times, near_times, anything),
    "completed_at": st.one_of(sound_times, near_times, anything),
    "duration_seconds": st.one_of(numbers, anything),
    "progress": st.one_of(numbers, anything),
    "error": anything,
    "metadata": st.one_of(metadata, anything),
}  # fmt: skip


@st.composite
def almost_sound_stages(draw: st.DrawFn) -> Any:
    """A sound stage in which some keys are odd, missing or more."""
    stage = draw(sound_stages)
    for key in draw(st.lists(st.sampled_from(sorted(odd_values)), max_size=2)):
        stage[key] = draw(odd_values[key])
    for key in draw(st.lists(st.sampled_from(sorted(odd_values)), max_size=1)):
        stage.pop(key, None)
    if draw(st.integers(0, 5)) == 0:
        stage |= draw(st.dictionaries(texts, anything, max_size=1))
    return [stage] if draw(st.integers(0, 15)) == 0 else stage


stages = st.one_of(almost_sound_stages(), sound_stages, st.sampled_from(STATUSES), anything)
columns = st.one_of(
    st.fixed_dictionaries(dict.fromkeys(STAGES, sound_stages), optional={"chunking": anything}),
    st.builds(
        lambda sound, odd: {**sound, **odd},
        st.fixed_dictionaries(dict.fromkeys(STAGES, sound_stages)),
        st.dictionaries(st.sampled_from(STAGES), stages, min_size=1, max_size=2),
    ),
    st.dictionaries(st.sampled_from([*STAGES, "chunking"]), stages, max_size=4),
    anything,
)
given_columns = hypothesis.settings(max_examples=400, deadline=None, derandomize=True, database=None)
given_stages = hypothesis.settings(max_examples=600, deadline=None, derandomize=True, database=None)


@given_columns
@hypothesis.given(column=columns)
def test_sound_is_exactly_what_repair_leaves_alone(service, column: Any) -> None:
    """is_sound(x) where and only where repaired_stages(x) = x; and what was repaired is sound and stays as it is."""
    sound, same, repaired_is_sound, repaired_stays = service.rows(
        "select krai_private.is_sound(x), y = x, krai_private.is_sound(y), krai_private.repaired_stages(y) = y "
        "from (select %s::text::jsonb) given (x), krai_private.repaired_stages(x) y",
        json.dumps(column),
    )[0]
    assert sound is same
    assert (repaired_is_sound, repaired_stays) == (True, True)


@given_stages
@hypothesis.given(stage=stages)
def test_the_view_and_the_function_read_the_same_state(service, stage: Any) -> None:
    """vw_document_stages.status, which holds the rule inline, equals _stage_state, before and after repair."""
    # The expression of the view itself, over a value in place of the table.
    view = service.value("select pg_get_viewdef('krai_core.vw_document_stages')").rstrip(";")
    query = f"with given (x) as (select %s::text::jsonb), odd as ({view}) select * from odd".replace(
        "krai_core.documents d",
        "(select gen_random_uuid() as id, jsonb_build_object('upload', x) as stage_status from given) d",
    )
    rows = service.rows(
        f"select status, krai_private.stage_state(stage), krai_private.repaired_stage(stage) ->> 'status' "
        f"from ({query}) v where stage_name = 'upload'",
        json.dumps(stage),
    )
    assert len(set(rows[0])) == 1
    assert rows[0][0] in STATUSES


@given_stages
@hypothesis.given(stage=stages)
def test_a_repaired_stage_has_the_seven_keys_and_loses_nothing(service, stage: Any) -> None:
    """Repair gives the seven keys in their types; metadata stays, and a value that was replaced is in metadata.v1."""
    repaired = service.value("select krai_private.repaired_stage(%s::text::jsonb)", json.dumps(stage))
    kept = service.value("select %s::text::jsonb", json.dumps(stage))
    assert set(repaired) >= set(odd_values)
    if not isinstance(kept, dict):
        assert repaired["metadata"] == ({} if kept is None else {"v1": kept})
        return
    old_metadata = kept.get("metadata")
    if isinstance(old_metadata, dict):
        assert {**repaired["metadata"], "v1": None} == {**old_metadata, **repaired["metadata"], "v1": None}
        assert old_metadata.keys() <= repaired["metadata"].keys()
    for key, value in kept.items():
        if key == "metadata" or value is None or repaired[key] == value:
            continue
        if key in ("started_at", "completed_at") and repaired[key] is not None:
            continue
        if key == "error" and repaired[key] is not None:
            assert json.loads(repaired[key]) == value
            continue
        assert repaired["metadata"]["v1"][key] == value


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/New_York"])
@pytest.mark.parametrize("style", ["ISO, MDY", "German, DMY", "SQL, DMY"])
def test_repair_does_not_depend_on_the_session(connect, zone: str, style: str) -> None:
    """Times without a zone, and dates of both orders, are read alike in every session."""
    session = connect()
    session.run("select set_config('timezone', %s, false), set_config('datestyle', %s, false)", zone, style)
    for text, meant in (
        ("2025-10-04 08:00:00", "2025-10-04T08:00:00.000000Z"),
        ("04/10/2025 08:00", "2025-04-10T08:00:00.000000Z"),
    ):
        assert session.value("select krai_private.iso_time(krai_private.time_or_null(%s))", text) == meant
