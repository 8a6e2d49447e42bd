"""Which migrations a project lacks, and how they are called there.

A project gets each file under a time of its own, later than all that it has: ``supabase db push`` refuses a file that
sorts before one that was applied. So ours are told by their topic and their text, not by their time. A file that is
there is never changed, because it may have been applied; a newer text comes as a further file, which is harmless, since
each of ours can be run again at any time.
"""

import datetime as dt
import re
from dataclasses import dataclass
from pathlib import Path

from processors_v2._errors import ConfigurationError
from processors_v2._install.folders import reported
from processors_v2._local.project import migration_files, migrations_folder

_VERSION = re.compile(r"(\d+)_(.+)\.sql")
_TIME = "%Y%m%d%H%M%S"
PREFIX = "stage_tracking_"


@dataclass(frozen=True)
class Migration:
    """A file: one of ours, or one of the project.

    Attributes:
        name: Its name.
        topic: Its name without the time, and without our prefix.
        is_prefixed: Whether it has that.
        text: What is in it; line ends as git on Windows writes them make no other text.
    """

    name: str
    topic: str
    is_prefixed: bool
    text: bytes


@dataclass(frozen=True)
class MigrationPlan:
    """What is to be done in a project.

    Attributes:
        present: The files there that are ours, word for word.
        changed: Files there that have a topic of ours and another text: an older one, or one that somebody edited.
        added: What is to be written: name and text, in order.
    """

    present: list[str]
    changed: list[str]
    added: list[tuple[str, bytes]]


def make_plan(folder: Path, now: dt.datetime, *, update: bool) -> MigrationPlan:
    """Compare the migrations of a project with ours.

    Args:
        folder: ``supabase/migrations`` of the project; need not exist.
        now: The time, in UTC.
        update: Whether the newer text of changed files is added; without it nothing is added where some are changed,
            since the rest may build on it.

    Raises:
        ConfigurationError: A name there sorts behind every time.
    """
    ours, theirs = _read(migrations_folder()), _read(folder)
    by_text = {one.text: one.name for one in theirs}
    # Those who copied the files by hand kept their names.
    copied = {one.name for one in ours}
    by_topic = {one.topic: one.name for one in theirs if one.is_prefixed or one.name in copied}
    missing = [one for one in ours if one.text not in by_text]
    changed = [one for one in missing if one.topic in by_topic]
    if changed and update:
        # Those behind it are run again as well: what an earlier one drops, a later one may make anew.
        first = ours.index(changed[0])
        missing = [one for one in ours if one in missing or ours.index(one) >= first]
    elif changed:
        missing = []
    return MigrationPlan(
        present=sorted(by_text[one.text] for one in ours if one.text in by_text),
        changed=sorted(by_topic[one.topic] for one in changed),
        added=[
            (f"{time}_{PREFIX}{one.topic}.sql", one.text)
            for time, one in zip(_times(theirs, now, len(missing)), missing, strict=True)
        ],
    )


def _read(folder: Path) -> list[Migration]:
    found = []
    with reported():
        for path in migration_files(folder):
            match = _VERSION.fullmatch(path.name)
            title = match[2] if match else path.stem
            text = path.read_bytes().replace(b"\r\n", b"\n")
            found.append(Migration(path.name, title.removeprefix(PREFIX), title.startswith(PREFIX), text))
    return found


def _times(theirs: list[Migration], now: dt.datetime, count: int) -> list[str]:
    """Names sort as texts, for the CLI too."""
    first = now
    latest = max((match[1] for one in theirs if (match := _VERSION.fullmatch(one.name))), default="")
    if latest >= now.strftime(_TIME):
        try:
            first = dt.datetime.strptime(latest, _TIME).replace(tzinfo=dt.UTC) + dt.timedelta(seconds=1)
        except ValueError:
            raise ConfigurationError(
                f"the migration {latest}_... sorts behind every time, so that nothing can come after it",
                hint="Give it a time: YYYYMMDDHHMMSS_<name>.sql; `supabase migration repair` tells the database",
            ) from None
    return [(first + dt.timedelta(seconds=number)).strftime(_TIME) for number in range(count)]
