"""docs/monitoring.md does what it says."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from processors_v2.local import LocalSupabase

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/monitoring.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
PROGRAMS = [text for language, text in BLOCKS if language == "python"]
MARK = "-- next --"


def shown() -> list[str]:
    """What stands under each program; nothing where another block follows."""
    following = [*BLOCKS[1:], ("end", "")]
    return [
        after if language == "" else ""
        for (here, _), (language, after) in zip(BLOCKS, following, strict=True)
        if here == "python"
    ]


def means(printed: str, shown: str) -> bool:
    """Whether the words are the same, and numbers with a decimal point nearly."""
    found, wanted = re.findall(r"\d+\.\d+|\S", printed), re.findall(r"\d+\.\d+|\S", shown)
    return len(found) == len(wanted) and all(
        float(one) == pytest.approx(float(other), rel=0.3) if "." in one[1:] and "." in other[1:] else one == other
        for one, other in zip(found, wanted, strict=True)
    )


@pytest.fixture(scope="module")
def printed() -> list[str]:
    """What each program prints, run one after the other."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"\nprint({MARK!r})\n".join(PROGRAMS)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split(f"{MARK}\n")


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_each_program_prints_what_stands_under_it(printed: list[str], number: int) -> None:
    """Word for word; estimates may differ a little from machine to machine."""
    assert means(printed[number], shown()[number]), printed[number]


def test_numbers_are_compared_as_numbers() -> None:
    """The comparison sees other words, other counts and other estimates."""
    assert means("took 10.0 s", "took 11.5 s")
    assert not means("took 10.0 s", "took 19.0 s")
    assert not means("took 10 s", "took 11 s")
    assert not means("took 10.0 s", "lost 10.0 s")
    assert not means("a b", "a")


@pytest.fixture(scope="module")
def connection(local: LocalSupabase) -> "Iterator[psycopg.Connection[tuple[object, ...]]]":
    """A connection as service_role."""
    with psycopg.connect(local.admin_url, autocommit=True) as opened:
        opened.execute("set role service_role")
        yield opened


@pytest.mark.parametrize("query", [text for language, text in BLOCKS if language == "sql"])
def test_each_query_runs(connection: "psycopg.Connection[tuple[object, ...]]", query: str) -> None:
    """It runs as it stands, for the service role, and gives rows."""
    connection.execute("insert into krai_core.documents (filename) values ('a.pdf')")
    assert connection.execute(query).fetchall()


@pytest.mark.parametrize("line", [line for line in PAGE.splitlines() if line.startswith("| ") and "`" in line])
def test_every_name_in_the_table_exists(connection: "psycopg.Connection[tuple[object, ...]]", line: str) -> None:
    """The second column names methods of StageTracker, the third functions and views."""
    from processors_v2.stage_tracker import StageTracker  # noqa: PLC0415 - beside what it is compared with

    _, _, python, sql, _ = line.split("|")
    assert all(callable(getattr(StageTracker, name)) for name in re.findall(r"`(\w+)`", python))
    for name in re.findall(r"`(\w+)`", sql):
        found = connection.execute(
            "select 1 from pg_proc where pronamespace = 'krai_core'::regnamespace and proname = %s"
            " union all select 1 from pg_class where relnamespace = 'krai_core'::regnamespace and relname = %s",
            [name, name],
        ).fetchall()
        assert found or "rpc" in sql, name
