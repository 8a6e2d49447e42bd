"""docs/lifecycle.md says what the database does: each cell of its tables is tried."""

import json
import re
import uuid
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from blocks import blocks_of, text_of

Connect = Callable[..., "psycopg.Connection[tuple[Any, ...]]"]

PAGE = text_of("docs/lifecycle.md")
STAGE = "text_extraction"
STATES = ["pending", "processing", "completed", "failed", "skipped"]
ARGUMENTS: dict[str, str] = {
    "start_stage": "",
    "update_stage_progress": ", 60, '{\"added\": 1}'",
    "complete_stage": ", '{\"added\": 1}'",
    "fail_stage": ", 'out of paper', '{\"added\": 1}'",
    "skip_stage": ", 'no need'",
    "retry_stage": "",
    "reset_stage": "",
}
ENDS = {"complete_stage": "completed", "fail_stage": "failed", "skip_stage": "skipped"}


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under a heading, the head of the table first."""
    lines = PAGE.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0].splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [table[0], *table[2:]]


def cells(heading: str) -> list[Any]:
    """Each cell that says something: call, column and what it says."""
    head, *body = rows(heading)
    return [
        pytest.param(row[0], column, said, id=f"{row[0]}-{column}")
        for row in body
        for column, said in zip(head[1:], row[1:], strict=True)
        if said
    ]


class Tried:
    """A document, and what calls on one of its stages do."""

    def __init__(self, connection: "psycopg.Connection[tuple[Any, ...]]") -> None:
        self.connection = connection
        self.document = self.value("insert into krai_core.documents (filename) values ('a.pdf') returning id")

    def value(self, query: str) -> Any:
        """The one value of a query."""
        row = self.connection.execute(query.encode()).fetchone()
        assert row is not None
        return row[0]

    def call(self, function: str, arguments: str = "", claim: uuid.UUID | None = None) -> Any:
        """What a call answers; the word of the refusal where it raises."""
        named = f", p_claim_id => '{claim}'" if claim else ""
        try:
            return self.value(f"select krai_core.{function}('{self.document}', '{STAGE}'{arguments}{named})")
        except psycopg.Error as refused:
            return json.loads(refused.diag.message_detail or "{}")["error"]

    def stage(self) -> dict[str, Any]:
        """The stage, as it is stored."""
        stored: dict[str, Any] = self.value(
            f"select stage_status -> '{STAGE}' from krai_core.documents where id = '{self.document}'"
        )
        return stored

    def end_lease(self) -> None:
        """Let the lease of the running run be over."""
        self.connection.execute(
            "update krai_core.stage_runs set lease_expires_at = clock_timestamp() - interval '1 s'"
            " where document_id = %s and stage_name = %s and status = 'running'",
            [self.document, STAGE],
        )

    def holds(self, said: str, answer: Any, before: dict[str, Any]) -> None:
        """The answer and the stage are what a cell says."""
        after = self.stage()
        if said in STATES:
            assert (answer, after["status"]) == (True, said)
        elif said in {"stored", "merged"}:
            assert (answer, after["status"]) == (True, before["status"])
            assert after["metadata"] == {**before["metadata"], "added": 1}
            assert said == "merged" or after["progress"] == 60
            assert before["status"] != "failed" or after["error"] == "out of paper"
        else:
            assert answer == {"true": True, "false": False}.get(said, said)
            assert after == before


@pytest.fixture
def tried(connect: Connect) -> Tried:
    """A new document."""
    return Tried(connect())


@pytest.mark.parametrize(("call", "state", "said"), cells("Every call in every state"))
def test_each_cell_without_a_claim_id_is_so(tried: Tried, call: str, state: str, said: str) -> None:
    """The call, made on a stage in that state, answers and changes what the cell says."""
    if state != "pending":
        tried.call("start_stage")
        tried.call("update_stage_progress", ", 40, '{\"kept\": 1}'")
        ended = {by: function for function, by in ENDS.items()}.get(state)
        if ended:
            tried.call(ended, ", 'before'" if ended == "fail_stage" else "")
    if "lease is over" in call:
        tried.end_lease()
    before = tried.stage()
    assert before["status"] == state
    [name] = re.findall(r"^`(\w+)`", call)
    answer = tried.call(name, ARGUMENTS[name] + (", p_force => true" if "p_force" in call else ""))
    tried.holds(said, answer, before)


@pytest.mark.parametrize(("call", "fate", "said"), cells("With a claim id"))
def test_each_cell_with_a_claim_id_is_so(tried: Tried, call: str, fate: str, said: str) -> None:
    """The call, made for a run with that fate, answers and changes what the cell says."""
    claim, name = uuid.uuid4(), call.strip("`")
    tried.call("start_stage", "", claim)
    if fate == "somebody else ended it":
        tried.end_lease()
        assert tried.call("start_stage", "", uuid.uuid4()) is True
    elif fate != "the run goes on":
        otherwise = "skip_stage" if name == "fail_stage" else "fail_stage"
        same = name if name in ENDS else "complete_stage"
        ended = same if fate == "its holder ended it by this call" else otherwise
        assert tried.call(ended, ARGUMENTS[ended], claim) is True
    before = tried.stage()
    tried.holds(said, tried.call(name, ARGUMENTS[name], claim), before)


def test_the_tables_are_whole() -> None:
    """Each call that writes is in the first table, with all five states; each that takes a claim id in the second."""
    head, *body = rows("Every call in every state")
    assert head == ["call", *STATES]
    assert {re.findall(r"^`(\w+)`", row[0])[0] for row in body} == set(ARGUMENTS)
    assert {row[0].strip("`") for row in rows("With a claim id")[1:]} == set(ARGUMENTS) - {"retry_stage", "reset_stage"}


def test_the_diagram_shows_what_the_table_says() -> None:
    """Each arrow between two states is a cell of the table."""
    [drawn, _] = [block.text for block in blocks_of("docs/lifecycle.md") if block.language == "mermaid"]
    arrows = set(re.findall(r"(\w+) --> (\w+): (\w+)", drawn))
    head, *body = rows("Every call in every state")
    table = {(state, said, row[0].strip("`")) for row in body for state, said in zip(head[1:], row[1:], strict=True)}
    assert arrows
    assert arrows <= table


def test_the_prerequisites_are_those_of_the_database(connect: Connect) -> None:
    """The table has the stages in their order, and what each requires."""
    found = connect().execute(
        "select s.name, coalesce(string_agg(r.name, ', ' order by r.position), '') from krai_core.stages s"
        " left join krai_core.stage_prerequisites p on p.stage_name = s.name"
        " left join krai_core.stages r on r.name = p.requires group by s.name, s.position order by s.position"
    )
    assert [list(row) for row in found] == rows("Prerequisites")[1:]


def test_the_seven_keys_are_those_of_a_stage(tried: Tried) -> None:
    """The example and the table under it name the keys of a stored stage, all of them."""
    [example] = [json.loads(block.text) for block in blocks_of("docs/lifecycle.md") if block.language == "json"]
    assert set(example) == set(tried.stage()) == {row[0].strip("`") for row in rows("The seven keys")[1:]}
