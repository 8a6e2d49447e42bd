"""Every block of code in README and docs is run, or says why it is not."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
import pytest
from blocks import (
    EACH_ALONE,
    PAGES,
    READ,
    ROOT,
    RUN,
    RUN_ELSEWHERE,
    SHOWN,
    Block,
    blocks_of,
    means,
    programs_of,
    text_of,
)
from psycopg.conninfo import conninfo_to_dict

from processors_v2._local.postgres import find_installation
from processors_v2._local.process import clean_environment
from processors_v2.local import LocalSupabase

Connect = Callable[..., "psycopg.Connection[tuple[Any, ...]]"]

A_DOCUMENT = """
with made as (
    insert into krai_core.documents (filename) select 'manual.pdf' where not exists (select from krai_core.documents)
    returning id
)
select id from made union all select id from krai_core.documents limit 1
"""
MARK = "-- next program --"
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
PYTHON = [(block, shown) for page in PAGES for block, shown in programs_of(page, "python")]
SQL = [block for page in PAGES for block, _ in programs_of(page, "sql")]
SHELL = [(block, shown) for page in PAGES for block, shown in programs_of(page, "bash", "sh")]


def named(blocks: list[Any]) -> list[Any]:
    """Parameters that are called by page and line."""
    rows = [one if isinstance(one, tuple) else (one,) for one in blocks]
    return [pytest.param(*row, id=str(row[0])) for row in rows]


@pytest.mark.parametrize("block", named(BLOCKS))
def test_a_block_is_run_or_read_or_says_why_not(block: Block) -> None:
    """Code is in a language that the tests run; what they do not run has a reason, or a test of its own, above it."""
    assert block.note in {"", "not run", "as", "run by", "figures vary"}, f"{block}: what is the note {block.note!r}?"
    if block.note == "not run":
        assert len(block.remark.split()) >= 3, f"{block}: say why it is not run"
    elif block.note == "run by":
        assert Path(block.page).name in (ROOT / block.remark).read_text(encoding="utf-8"), f"{block}: not run there"
    elif block.page not in RUN_ELSEWHERE:
        assert block.language in RUN | READ | SHOWN, f"{block}: nothing runs {block.language}"


@pytest.mark.parametrize(("page", "test"), [pair for pair in RUN_ELSEWHERE.items() if pair[0] in PAGES])
def test_a_page_with_a_test_of_its_own_is_named_there(page: str, test: str) -> None:
    """The test that is said to run the blocks of a page reads that page."""
    assert Path(page).name in (ROOT / test).read_text(encoding="utf-8")


@pytest.mark.parametrize("block", named([block for block in BLOCKS if block.language in READ]))
def test_data_can_be_read(block: Block) -> None:
    """JSON is JSON, and TOML is TOML."""
    assert (json.loads if block.language == "json" else tomllib.loads)(block.text)


@cache
def _printed(page: str) -> list[str]:
    """What the programs of a page print. Most pages are one program; those that are not begin anew with each block."""
    afresh = [f"exec({block.text!r}, {{'__name__': '__main__'}})" for block, _ in programs_of(page, "python")]
    programs = afresh if page in EACH_ALONE else [block.text for block, _ in programs_of(page, "python")]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"\nprint({MARK!r})\n".join(programs)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split(f"{MARK}\n")


@pytest.mark.parametrize(("block", "shown"), named(PYTHON))
def test_each_program_prints_what_stands_under_it(block: Block, shown: Block | None) -> None:
    """It runs as it stands, without a warning, and prints what the block under it shows."""
    place = [one for one, _ in programs_of(block.page, "python")].index(block)
    printed = _printed(block.page)[place]
    assert means(printed, shown), printed


@pytest.mark.parametrize("block", named(SQL))
def test_each_statement_runs(connect: Connect, block: Block) -> None:
    """It runs as it stands, for the role that its note names, in the database of its page; a query gives rows."""
    connection = connect(block.remark if block.note == "as" else "service_role", block.page)
    document = connection.execute(A_DOCUMENT).fetchone()
    assert document is not None
    cursor = connection.execute(block.text.replace("document-uuid", str(document[0])).encode())
    assert cursor.description is None or cursor.fetchall()


@pytest.fixture
def shell(local: LocalSupabase, database_of: Callable[[str], str], tmp_path: Path) -> Callable[[Block], str]:
    """Runs a script in a copy of the clone, where psql finds the database of its page."""
    for name in ("docs", "supabase"):
        shutil.copytree(ROOT / name, tmp_path / name)
    path = [str(find_installation(16).bin), str(Path(sys.executable).parent), os.environ["PATH"]]
    names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD", "dbname": "PGDATABASE"}

    def run(block: Block) -> str:
        url = local.url_of(database_of(block.page))
        environment = {names[name]: str(value) for name, value in conninfo_to_dict(url).items() if name in names}
        environment |= {"PATH": os.pathsep.join(path), "PYTHONPATH": str(ROOT), "DATABASE_URL": url}
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.text],
            cwd=tmp_path,
            env=clean_environment() | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.parametrize(("block", "shown"), named(SHELL))
def test_each_command_runs(shell: Callable[[Block], str], block: Block, shown: Block | None) -> None:
    """It ends well on the database of its page, and prints what stands under it where something does."""
    printed = shell(block)
    assert shown is None or means(printed, shown), printed


def _block(text: str, language: str = "", note: str = "") -> Block:
    [block] = blocks_of("page.md", f"{note}\n```{language}\n{text}```\n" if note else f"```{language}\n{text}```\n")
    return block


def test_a_note_is_that_of_the_block_under_it() -> None:
    """The note stands right above its block, and no other block has it."""
    noted = _block("psql\n", "bash", "<!-- not run: needs a hosted project -->")
    assert (noted.note, noted.remark, noted.is_run) == ("not run", "needs a hosted project", False)
    page = "<!-- as: postgres -->\n\n```sql\nselect 1\n```\n"
    assert [block.note for block in blocks_of("page.md", page)] == [""]


def test_output_is_compared_word_for_word() -> None:
    """The comparison sees other words and figures; where figures vary, it still sees those that are far off."""
    shown, varying = _block("took  10.0 s\n"), _block("took 10.0 s\n", note="<!-- figures vary -->")
    assert means("took 10.0 s\n", shown)
    assert not means("took 11.5 s\n", shown)
    assert means("took 11.5 s\n", varying)
    assert not any(means(text, varying) for text in ("took 19.0 s\n", "took 10 s\n", "lost 10.0 s\n", "took\n"))
    assert not means("something\n", None)


def test_every_page_is_looked_at() -> None:
    """The pages are README and all of docs, and their blocks are found."""
    assert {"README.md", "docs/monitoring.md"} < set(PAGES)
    fences = sum(line.lstrip().startswith("```") for page in PAGES for line in text_of(page).splitlines())
    assert fences == 2 * len(BLOCKS) > 0
