"""Which migrations a project lacks, and how they are called there.

A project gets each file under a time of its own, later than all that it has: ``supabase db push`` refuses a file that
sorts before one that was applied. So ours are told by their topic and their text, not by their time. A file that is
there is never changed, because it may have been applied; a newer text comes as a further file, which is harmless, since
each of ours can be run again at any time and holds all that came before it.
"""

import datetime as dt
import re
from dataclasses import dataclass
from pathlib import Path

from processors_v2._errors import ConfigurationError
from processors_v2._install.folders import check_folder, content_of
from processors_v2._local.project import migration_files, newest_migrations

_VERSION = re.compile(r"(\d+)_(.+)\.sql")
_TIME = "%Y%m%d%H%M%S"
# What the files of a state before 0.1.1 begin with, which came as 28 topics.
_EARLIER = "stage_tracking_"


@dataclass(frozen=True)
class Migration:
    """A file: one of ours, or one of the project.

    Attributes:
        name: Its name.
        topic: Its name without the time.
        text: What is in it; line ends as git on Windows writes them make no other text.
    """

    name: str
    topic: str
    text: bytes


@dataclass(frozen=True)
class MigrationPlan:
    """What is to be done in a project.

    Attributes:
        present: The files there that are ours, word for word.
        changed: Files there that are ours in another text: an older one, or one that somebody edited.
        added: What is to be written: name and text, in order.
        reviews: For each added file that takes the place of an older one: the names of both.
        not_before: When the times of the added files are over, so that none lies in the future: later than `now` where
            the project has a file from this very second, and far later where a file of the project does.
    """

    present: list[str]
    changed: list[str]
    added: list[tuple[str, bytes]]
    reviews: list[tuple[str, str]]
    not_before: dt.datetime


def make_plan(folder: Path, now: dt.datetime, *, update: bool) -> MigrationPlan:
    """Compare the migrations of a project with ours.

    Args:
        folder: ``supabase/migrations`` of the project; need not exist.
        now: The time, in UTC.
        update: Whether the newer text of changed files is added; without it nothing is added where some are changed,
            since what is there may build on it.

    Raises:
        ConfigurationError: A name there sorts behind every time, or is that of no file.
    """
    check_folder(folder)
    ours = [_read(path) for path in newest_migrations()]
    theirs = [_read(path) for path in migration_files(folder)]
    by_text = {one.text: one.name for one in theirs}
    topics = {one.topic for one in ours}
    missing = [one for one in ours if one.text not in by_text]
    lacking = {one.topic for one in missing}
    # The newest of each topic is what counts; what it came after was changed, too, and is of no interest any more.
    older = {one.topic: one.name for one in theirs if one.topic in lacking}
    earlier = [one.name for one in theirs if one.topic.startswith(_EARLIER)]
    changed = sorted([*older.values(), *(earlier if lacking >= topics else [])])
    if changed and not update:
        missing = []
    times, not_before = _times(theirs, now, len(missing))
    added = [(f"{time}_{one.topic}.sql", one.text) for time, one in zip(times, missing, strict=True)]
    return MigrationPlan(
        present=sorted(by_text[one.text] for one in ours if one.text in by_text),
        changed=changed,
        added=added,
        reviews=[(older[one.topic], name) for (name, _), one in zip(added, missing, strict=True) if one.topic in older],
        not_before=not_before,
    )


def _read(path: Path) -> Migration:
    match = _VERSION.fullmatch(path.name)
    return Migration(path.name, match[2] if match else path.stem, (content_of(path) or b"").replace(b"\r\n", b"\n"))


def _times(theirs: list[Migration], now: dt.datetime, count: int) -> tuple[list[str], dt.datetime]:
    """Give each file a second of its own behind all that is there, the last one now. Names sort as texts."""
    now = now.replace(microsecond=0)
    first = now - dt.timedelta(seconds=max(count - 1, 0))
    latest = max((match[1] for one in theirs if (match := _VERSION.fullmatch(one.name))), default="")
    if latest >= first.strftime(_TIME):
        try:
            first = dt.datetime.strptime(latest, _TIME).replace(tzinfo=dt.UTC) + dt.timedelta(seconds=1)
        except ValueError:
            raise ConfigurationError(
                f"the migration {latest}_... sorts behind every time, so that nothing can come after it",
                hint="Give it a time: YYYYMMDDHHMMSS_<name>.sql; `supabase migration repair` tells the database",
            ) from None
    times = [first + dt.timedelta(seconds=number) for number in range(count)]
    return [time.strftime(_TIME) for time in times], max([now, *times])
