"""Migrating a large table in use: how long each file takes, and how long writers wait meanwhile.

The documents are those of an earlier tracker (v1: with its column, functions, views and GIN index) or of none (field:
without the column). While the files are applied, by psql or by `supabase db push`, three connections insert documents,
rename and edit them, a statement every few milliseconds, a fourth holds a row for a third of a second at a time, and a
reader stays for seconds. A file that cannot get its lock within its bound is run again, as the docs say. Then a judge
looks at every document. killed: psql or its session is ended again and again at moments drawn at random, and all files
are run from the first one until they are through; MIGRATION_SEED repeats the draws.

MIGRATION_DOCUMENTS says how many documents there are (1,000,000); for push and killed a tenth of that, since what these
have to show does not grow with the table. --only takes some of v1, field, of psql, push, and of whole, killed.
"""

import os
import random
import tempfile
import time
from pathlib import Path

import psycopg

from benchmarks._shared.bench import Bench
from processors_v2.local import LocalSupabase
from proof._migration import field, judge
from proof._migration.killer import Killer
from proof._migration.supabase_cli import CliMissing
from proof._migration.traffic import Traffic
from proof._migration.ways import Psql, Step, Stopped, push, sessions

TAKES = "15 minutes (v1,psql,whole)"
PARTS = (("v1", "field"), ("psql", "push"), ("whole", "killed"))
RUNS = (
    ("v1", "psql", "whole"),
    ("field", "psql", "whole"),
    ("v1", "psql", "killed"),
    ("field", "psql", "killed"),
    ("v1", "push", "whole"),
    ("field", "push", "whole"),
)

DOCUMENTS = 1_000_000
SECONDS = 1.0
KILLS = 20
# What else the files of the database weigh.
SIZES = """
    select c.relname, pg_total_relation_size(c.oid), pg_relation_size(c.oid) from pg_class c
    where c.oid = any ('{krai_core.documents, krai_core.stage_runs, krai_core.idx_documents_stage_status}'::regclass[])
    order by 1
"""


def run(bench: Bench) -> None:
    """Migrate in each way that is wanted."""
    documents = int(os.environ.get("MIGRATION_DOCUMENTS") or (20_000 if bench.quick else DOCUMENTS))
    seed = int(os.environ.get("MIGRATION_SEED") or random.SystemRandom().randrange(1 << 32))
    bench.say(f"MIGRATION_SEED={seed}")
    with LocalSupabase(migrations=None) as local:
        templates: set[str] = set()
        for kind, way, manner in RUNS:
            if not all(bench.wants(part, group) for part, group in zip((kind, way, manner), PARTS, strict=True)):
                continue
            size = documents if (way, manner) == ("psql", "whole") else max(documents // 10, 100)
            template = f"{kind}_{size}"
            if template not in templates:
                make(bench, local, template, kind, size)
                templates.add(template)
            migrate(bench, local, template, (way, manner), size, seed)


def make(bench: Bench, local: LocalSupabase, name: str, kind: str, documents: int) -> None:
    """Make the database that is to be migrated."""
    local.create_database(name)
    with psycopg.connect(local.url_of(name), autocommit=True) as connection:
        filling = field.fill(connection, kind, documents)
        for _ in bench.progress(filling, f"{documents:,} documents, {kind}", len(field.chunks(documents))):
            pass


def migrate(bench: Bench, local: LocalSupabase, template: str, how: tuple[str, str], documents: int, seed: int) -> None:
    """Migrate a copy of a database, and judge it."""
    kind = template.split("_", maxsplit=1)[0]
    name = "_".join((template, *how))
    field.copy(local, template, name)
    url = local.url_of(name)
    label = f"{kind}, {how[0]}{', killed' if how[1] == 'killed' else ''}, {documents:,}"
    with psycopg.connect(url, autocommit=True) as connection:
        before = judge.others(connection)
        traffic = Traffic(url, documents, seed)
        diary = Diary(bench, label, traffic, quiet=how[1] == "killed")
        try:
            with traffic:
                apply(diary, url, how, documents, seed)
        except CliMissing as missing:
            bench.say(f"{label} is left out: {missing}")
            return
        diary.report()
        for relation, total, own in connection.execute(SIZES).fetchall():
            sizes = f"{total / documents:,.0f} bytes a document, {own / documents:,.0f} without indexes"
            bench.say(f"{label}: {relation} {sizes}")
        verdicts = judge.verdicts(connection, kind, before, traffic.told)
        for what, number in bench.progress(verdicts, "verdicts", judge.VERDICTS):
            bench.add(f"{label}: {what}", number, "", target="none", ok=number == 0)
        for error in traffic.told.errors[:5]:
            bench.say(error)
    local.drop_database(name)


def apply(diary: "Diary", url: str, how: tuple[str, str], documents: int, seed: int) -> None:
    """Bring the migrations into the database."""
    if how == ("psql", "killed"):
        runs, kinds = until_done(diary, url, documents, seed)
        for what, number in {"runs until it was through": runs, **kinds}.items():
            diary.bench.add(f"{diary.label}: {what}", number, "")
    elif how == ("psql", "whole"):
        Psql(url).apply(diary.enter, diary.steps)
    else:
        with tempfile.TemporaryDirectory() as folder:
            push(url, Path(folder), diary.enter, diary.steps)
    diary.enter("")


def until_done(diary: "Diary", url: str, documents: int, seed: int) -> tuple[int, dict[str, int]]:
    """Run all files from the first one, again and again, while they are killed; return how many runs it took."""
    psql = Psql(url)
    runs = 0
    is_through = False
    # Early in the files, and, once there is nothing left to do in those, in the midst of the rows.
    with Killer(url, psql, KILLS, 1.0 + documents / 20_000, random.Random(seed)) as killer:
        while not is_through:
            runs += 1
            try:
                psql.apply(diary.enter, diary.steps)
                is_through = True
            except Stopped as stopped:
                if not killer.was_it(str(stopped)):
                    raise
    with psycopg.connect(url, autocommit=True) as connection:
        # A session whose psql was killed is at work until it has something to say.
        while sessions(connection):
            time.sleep(0.05)
    return runs, killer.kinds


class Diary:
    """What each file took, and what the writers lived through meanwhile.

    Attributes:
        bench: who is told.
        label: which migration it is.
        steps: the files.
    """

    def __init__(self, bench: Bench, label: str, traffic: Traffic, *, quiet: bool) -> None:
        self.bench = bench
        self.label = label
        self.steps: dict[str, Step] = {}
        self._traffic = traffic
        self._quiet = quiet
        self._current = ""
        self._begin = time.perf_counter()

    def enter(self, name: str) -> None:
        """Say how a file went, as soon as the next one begins."""
        if self._current and not self._quiet and name != self._current:
            self.bench.say(self.told(self._current))
        self._current = name
        self._traffic.enter(name)

    def told(self, name: str) -> str:
        """What there is to say about a file."""
        step, waits = self.steps[name], self._traffic.waits[name]
        again = f" in {step.attempts} attempts" if step.attempts > 1 else ""
        said = f" ({', '.join(step.said)})" if step.said else ""
        return (
            f"{self.label}: {name} {step.seconds:,.2f} s{again}{said}; {waits.statements:,} writes, longest "
            f"{waits.longest * 1000:,.0f} ms ({waits.what}), waiting for a lock at most {waits.locked * 1000:,.0f} ms"
        )

    def report(self) -> None:
        """Add the longest wait of a writer in each file."""
        for name in self.steps:
            longest = self._traffic.waits[name].longest
            target = f"at most {SECONDS * 1000:,.0f} ms"
            self.bench.add(
                f"{self.label}: {name}, longest write", longest * 1000, "ms", target=target, ok=longest <= SECONDS
            )
        self.bench.add(f"{self.label}: all of it", time.perf_counter() - self._begin, "s")
