"""The public names, their types, and that they say what the database says."""

import inspect
import re
from typing import Any, get_args, get_type_hints

import pytest

from processors_v2 import models
from processors_v2.models import Stage, StageCounts, StageState, StageStatus
from processors_v2.stage_tracker import (
    StageTracker,
)


def test_fields_are_described_as_in_the_database(db: Any) -> None:
    """The description of each field of Stage is the comment on its column."""
    comments = dict(
        db.connection.execute(
            "select attname, col_description(attrelid, attnum) from pg_attribute"
            " where attrelid = 'krai_core.stages'::regclass and attnum > 0 and not attisdropped"
        ).fetchall()
    )
    described = {name: field.description for name, field in Stage.model_fields.items()}
    requires = described.pop("requires")
    # What the database keeps for itself.
    assert {"waits_for", "fill_after"} <= comments.keys()
    assert described == {name: text for name, text in comments.items() if name not in {"waits_for", "fill_after"}}
    assert requires


def test_the_states_are_those_of_the_database(db: Any, document: str) -> None:
    """Each value of StageState is a state that the database keeps, and no other value is."""
    for state in get_args(StageState):
        kept = db.one("select krai_private.stage_state(jsonb_build_object('status', %s::text))", state)
        assert kept == state
    assert db.one('select krai_private.stage_state(\'{"status": "in_progress"}\')') == "pending"
    assert set(db.stage(document, "upload")) == set(StageStatus.__annotations__)


def test_counts_have_the_keys_of_their_type(tracker: StageTracker) -> None:
    """get_statistics answers with exactly the keys of StageCounts."""
    assert set(tracker.get_statistics()["upload"]) == set(StageCounts.__annotations__)


@pytest.mark.parametrize(
    ("kind", "view"), [(models.RunningStage, "vw_running_stages"), (models.StageFlow, "vw_stage_flow")]
)
def test_rows_have_the_columns_of_their_view(db: Any, kind: Any, view: str) -> None:
    """What is read from a view is described column by column."""
    columns = db.one(
        "select array_agg(attname::text) from pg_attribute where attrelid = %s::regclass and attnum > 0",
        f"krai_core.{view}",
    )
    assert set(get_type_hints(kind)) == set(columns)


def test_states_of_runs_are_those_of_the_database(db: Any) -> None:
    """RunState names every status that a run can have, and no other."""
    rule = db.one("select pg_get_constraintdef(oid) from pg_constraint where conname = 'stage_runs_status_is_known'")
    assert set(get_args(models.RunState)) == set(re.findall(r"'(\w+)'", rule))


def test_methods_are_named_as_the_functions_of_the_database(db: Any) -> None:
    """Each method that is one SQL function bears its name, so that one search finds the rule, the call and the test."""
    functions = {
        name
        for (name,) in db.connection.execute(
            "select proname from pg_proc where pronamespace = 'krai_core'::regnamespace and prokind = 'f'"
            " and proname !~ '^_' and prorettype <> 'trigger'::regtype"
        )
    }
    methods = {name for name, _ in inspect.getmembers(StageTracker, inspect.isfunction) if not name.startswith("_")}
    shorter = {
        "get_progress",
        "get_statistics",
        "update_progress",
        "get_stage_status",
        "claim",
        "get_timeline",
        "get_eta",
    }
    views = {"list_stages", "get_running_stages", "get_stage_flow"}
    assert methods - functions == shorter | views | {"close", "watch"}
