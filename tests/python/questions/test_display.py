"""Answers as tables in notebooks, and as DataFrames; for everything else they are plain dicts and lists."""

import asyncio
import copy
import json
import pickle
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pandas as pd
import pytest

from processors_v2 import _display, models
from processors_v2.errors import ConfigurationError
from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import AsyncStageTracker, StageTracker

HOSTILE = "<script>alert('x')</script> & \"quoted\" </td>"
BACKGROUNDS = ((255, 255, 255), (17, 17, 17))

Answers = dict[str, Any]


@pytest.fixture(scope="module")
def answers(rest: StageTracker, db: Any) -> Answers:
    """Every answer that is shown as a table, of documents with hostile names, errors and metadata."""
    documents = [db.document(), db.document()]
    for document in documents:
        db.one("update krai_core.documents set filename = %s where id = %s returning 1", HOSTILE, document)
    document, running = documents
    rest.start_stage(document, "upload", worker=HOSTILE)
    rest.complete_stage(document, "upload", {HOSTILE: HOSTILE})
    rest.start_stage(document, "text_extraction", worker="gpu-7")
    rest.fail_stage(document, "text_extraction", HOSTILE)
    rest.skip_stage(document, "image_processing", HOSTILE)
    rest.start_stage(running, "upload", worker=HOSTILE)
    rest.update_progress(running, "upload", 45.5)
    return {
        "document": rest.get_document_status(document),
        "stages": rest.get_stage_status(running),
        "statistics": rest.get_statistics(),
        "timeline": rest.get_timeline(document),
        "failures": rest.get_failures(),
        "forecast": rest.get_forecast(),
        "flow": rest.get_stage_flow(),
        "running": rest.get_running_stages(),
    }


NAMES = ("document", "stages", "statistics", "timeline", "failures", "forecast", "flow", "running")


@pytest.mark.parametrize("name", NAMES)
def test_answers_stay_what_they_were(answers: Answers, name: str) -> None:
    """Each is a dict or a list, equal to the plain one, and goes through JSON, copies and pickles as such."""
    answer = answers[name]
    plain = json.loads(json.dumps(answer))
    assert type(plain) in type(answer).__mro__
    assert answer == plain
    assert plain == answer
    assert repr(answer) == repr(plain)
    for again in (copy.deepcopy(answer), pickle.loads(pickle.dumps(answer))):
        assert again == plain
        assert again._repr_html_() == answer._repr_html_()


def test_the_asynchronous_tracker_gives_the_same(local: LocalSupabase, document: str) -> None:
    """What is awaited is shown and framed, too."""

    async def ask() -> Any:
        async with AsyncStageTracker(await local.async_client()) as tracker:
            return await tracker.get_document_status(document)

    answer = asyncio.run(ask())
    assert document in answer._repr_html_()
    assert list(answer.to_pandas().index)[:8] == StageTracker.STAGES


class Reader(HTMLParser):
    """Notes tags, attributes and texts as a browser would."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.names: set[str] = set()
        self.texts: list[str] = []
        self.styles: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag."""
        self.tags.append(tag)
        self.names |= {name for name, _ in attrs}
        self.styles += [value or "" for name, value in attrs if name == "style"]

    def handle_data(self, data: str) -> None:
        """Note a text."""
        self.texts.append(data)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_shown_is_only_text(answers: Answers, name: str) -> None:
    """Whatever stands in names, errors and metadata, no tag, script, link or handler comes of it."""
    seen = Reader(answers[name]._repr_html_())
    assert set(seen.tags) <= {"div", "span", "b", "table", "thead", "tbody", "tr", "th", "td"}
    assert seen.names <= {"style", "title", "colspan"}
    assert "url(" not in " ".join(seen.styles)


@pytest.mark.parametrize("name", ["document", "timeline", "running"])
def test_hostile_text_is_shown_as_it_is(answers: Answers, name: str) -> None:
    """A person reads what was stored."""
    assert any(HOSTILE in text for text in Reader(answers[name]._repr_html_()).texts)


def contrast(colour: tuple[int, ...], ground: tuple[int, ...]) -> float:
    """Return the contrast of two colours, 1 to 21, as WCAG has it."""

    def luminance(parts: tuple[int, ...]) -> float:
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in (part / 255 for part in parts)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(colour), luminance(ground)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("name", NAMES)
def test_pages_may_be_light_or_dark(answers: Answers, name: str) -> None:
    """Text has the colour of the page, and every bar stands out from white and from black."""
    styles = ";".join(Reader(answers[name]._repr_html_()).styles)
    assert not re.search(r"(^|;)\s*color:", styles)
    for colour in set(re.findall(r"#([0-9a-f]{6})", styles)):
        for ground in BACKGROUNDS:
            assert contrast(tuple(bytes.fromhex(colour)), ground) >= 3, colour


def test_bars_are_as_long_as_the_progress(answers: Answers) -> None:
    """45.5 % is a bar of 45.5 % and says so; a bar of statistics is divided as the counts are."""
    assert "width:45.50%" in answers["stages"]._repr_html_()
    assert " 45.5 %" in Reader(answers["stages"]._repr_html_()).texts
    counts = {"pending": 2, "processing": 0, "completed": 5, "failed": 2, "skipped": 1}
    table = _display.StatisticsTable({"upload": {**answers["statistics"]["upload"], **counts}})
    widths = re.findall(r"width:([\d.]+)%", table._repr_html_())
    assert widths == ["50.00", "10.00", "0.00", "20.00", "20.00"]


def test_a_status_is_told_by_a_word(answers: Answers) -> None:
    """Whoever sees no colours reads the same."""
    texts = Reader(answers["document"]._repr_html_()).texts
    assert {"✓ completed", "✗ failed", "- skipped", "· pending"} <= set(texts)


def test_a_timeline_shows_workers_only_where_it_has_any(answers: Answers) -> None:
    """Signed-in users are not told who worked, and see no column for it."""
    timeline = answers["timeline"]
    assert "worker" in Reader(timeline._repr_html_()).texts
    hidden = {**timeline, "runs": [{**run, "worker": None} for run in timeline["runs"]]}
    assert "worker" not in Reader(_display.TimelineTable(hidden)._repr_html_()).texts


def test_long_lists_are_cut_and_say_so(answers: Answers) -> None:
    """The first 60 rows are shown, and how many there are more."""
    shown = _display.FlowTable(answers["flow"][:1] * 75)._repr_html_()
    seen = Reader(shown)
    assert seen.tags.count("tr") == 62
    assert "… and 15 more" in seen.texts


ROWS: list[tuple[str, type, Callable[[Any], int]]] = [
    ("document", models.StageStatus, lambda answer: len(answer["stage_status"])),
    ("stages", models.StageStatus, len),
    ("statistics", models.StageCounts, len),
    ("timeline", models.TimelineRun, lambda answer: len(answer["runs"])),
    ("flow", models.StageFlow, len),
    ("running", models.RunningStage, len),
]


@pytest.mark.parametrize(("name", "kind", "count"), ROWS)
def test_a_frame_has_a_row_for_each(answers: Answers, name: str, kind: Any, count: Callable[[Any], int]) -> None:
    """The columns are the keys of the documented type, times are UTC, numbers that may be missing are floats."""
    frame = answers[name].to_pandas()
    assert len(frame) == count(answers[name])
    assert list(frame.columns) == list(kind.__annotations__)
    for column, hint in kind.__annotations__.items():
        if column.endswith("_at") or column == "hour":
            assert str(frame[column].dtype) == "datetime64[ns, UTC]", column
        if hint in {float, float | None}:
            assert frame[column].dtype == float, column
        if hint is int:
            assert frame[column].dtype == int, column


def test_values_of_a_frame_are_those_of_the_answer(answers: Answers) -> None:
    """A time is the instant that was told, and what is not there is missing."""
    stage, frame = answers["document"]["stage_status"]["upload"], answers["document"].to_pandas()
    assert frame.index.name == "stage_name"
    assert frame.loc["upload", "started_at"] == pd.Timestamp(stage["started_at"])
    assert frame.loc["upload", "duration_seconds"] == stage["duration_seconds"]
    assert frame.loc["text_extraction", "error"] == HOSTILE
    assert frame.loc["upload", "metadata"] == {HOSTILE: HOSTILE}
    assert pd.isna(frame.loc["embedding", "started_at"])
    assert pd.isna(frame.loc["embedding", "duration_seconds"])


def test_nested_objects_stand_side_by_side(answers: Answers) -> None:
    """What an object within a row holds has columns of its own, missing where there is no such object."""
    stages, frame = answers["forecast"]["stages"], answers["forecast"].to_pandas()
    assert {"backlog_p50", "backlog_p90", "empty_today", "empty_one_more", "empty_one_fewer"} < set(frame.columns)
    for name, stage in stages.items():
        assert pd.isna(frame.loc[name, "backlog_p50"]) == (stage["backlog"] is None)
    groups, kinds = answers["failures"]["groups"], answers["failures"].to_pandas()
    assert list(kinds["sample_document_id"]) == [group["sample"]["document_id"] for group in groups]


def test_a_frame_without_rows_has_the_same_columns(rest: StageTracker, answers: Answers) -> None:
    """Nothing found is a frame of the same types, so that a program need not ask."""
    empty = rest.get_stage_flow("no_such_stage")
    assert empty == []
    frame: Any = empty.to_pandas()  # type: ignore[attr-defined]
    assert frame.dtypes.to_dict() == answers["flow"].to_pandas().dtypes.to_dict()
    assert _display.TimelineTable(document_id="", filename=None, runs=[])._repr_html_()


def test_without_pandas_it_says_what_to_install(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    """pandas is an extra, and nothing else needs it."""
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'stage-tracker\[pandas\]'"):
        answers["document"].to_pandas()
    assert answers["document"]._repr_html_()
