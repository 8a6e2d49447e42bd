"""The command that runs a worker."""

import datetime as dt
import functools
import importlib
import logging
import sys
import traceback
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer

import processors_v2
from processors_v2._cli import words
from processors_v2._cli.connect import Session, open_tracker


class Executor(StrEnum):
    """Where handlers run."""

    THREADS = "threads"
    PROCESSES = "processes"


def worker(
    session: Session,
    handlers: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:HANDLERS",
            show_default=False,
            help="A mapping in a module of yours, from stage names to functions.",
        ),
    ],
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, help="Handlers that run at once.")] = 4,
    executor: Annotated[Executor, typer.Option("--executor", help="Where handlers run.")] = Executor.THREADS,
    name: Annotated[
        str | None, typer.Option("--name", help="Shown for who works. Default: host name and process id.")
    ] = None,
    until_empty: Annotated[bool, typer.Option("--until-empty", help="End when nothing is ready any more.")] = False,
    drain_seconds: Annotated[
        float, typer.Option("--drain-seconds", min=0, help="For how long handlers may go on after a stop.")
    ] = 20.0,
    reap_seconds: Annotated[
        float, typer.Option("--reap-seconds", min=0.1, help="Pause between two looks at what dead workers have left.")
    ] = 30.0,
    prune_older_than: Annotated[
        dt.timedelta | None,
        typer.Option(
            "--prune-older-than",
            metavar="AGE",
            parser=words.age,
            help="Delete superseded runs so old, too, as often.",
        ),
    ] = None,
) -> None:
    """Claim stages and run your handlers on them, until Ctrl-C or SIGTERM."""
    # It waits longer than a person does: a restart of the database is no reason to end.
    with open_tracker(session.way, timeout=session.timeout) as tracker:
        from processors_v2._worker.stage_worker import StageWorker  # noqa: PLC0415 - it imports supabase

        logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
        found = _load(handlers)
        made = StageWorker(
            tracker,
            found,
            concurrency=concurrency,
            executor=executor.value,
            child_tracker=functools.partial(open_tracker, session.way) if executor is Executor.PROCESSES else None,
            name=name,
            reap_seconds=reap_seconds,
            drain_seconds=drain_seconds,
            prune_older_than=prune_older_than,
        )
        session.output.note(
            f"At work on {', '.join(map(str, found))}, {concurrency} at once. "
            "Ctrl-C stops when those are done, a second one at once."
        )
        made.run(until_empty=until_empty)
        counts = made.counts
    session.output.answer(counts, ", ".join(f"{count:,} {word}" for word, count in counts.items()))


def _load(path: str) -> Mapping[str, Any]:
    """Import handlers by a path such as ``my_handlers:HANDLERS``.

    Raises:
        typer.BadParameter: There is no such module or attribute, or it is no mapping.
    """
    module, _, attribute = path.partition(":")
    if not module or not attribute:
        raise typer.BadParameter(f"{path!r} is not of the form MODULE:HANDLERS, such as my_handlers:HANDLERS.")
    _find_modules_here(Path.cwd())
    found: Any = _imported(module)
    for name in attribute.split("."):
        if not hasattr(found, name):
            raise typer.BadParameter(f"there is no {attribute} in {module}: name the mapping of its handlers.")
        found = getattr(found, name)
    if not isinstance(found, Mapping):
        raise typer.BadParameter(
            f'{path} is a {type(found).__name__}, not a mapping such as {{"text_extraction": extract}}.'
        )
    return found


def _imported(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            raise typer.BadParameter(
                f"there is no module {error.name}; it is looked for in the working directory and on the Python path."
            ) from error
        raise typer.BadParameter(f"{module} needs what is not there: {error}. Install it.") from error
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{last.filename}, line {last.lineno}"
        raise typer.BadParameter(f"{module} cannot be imported: {type(error).__name__}: {error} ({where}).") from error


def _find_modules_here(folder: Path) -> None:
    """Let modules of the working directory be found, also those of a folder ``processors_v2`` of the project there."""
    sys.path.insert(0, str(folder))
    own = folder / processors_v2.__name__
    if own.is_dir() and not (own / "_errors.py").exists():
        processors_v2.__path__.insert(0, str(own))
