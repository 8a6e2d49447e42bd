"""Every question, with other arguments each time it is asked, and what one would write for it at first."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeAlias

from postgrest import SyncPostgrestClient

from benchmarks._scale import naive
from benchmarks._scale.samples import Samples

Arguments: TypeAlias = Mapping[str, Any]

PAGE = 50
SIGNS = {"eq": "=", "gt": ">", "gte": ">=", "lt": "<"}


def nothing(_: Samples) -> Arguments:
    """No arguments."""
    return {}


@dataclass(frozen=True)
class Function:
    """A function with named arguments.

    Attributes:
        name: begins with that of the function; the rest is for people.
        baseline: the naive statement for it.
        draw: makes the arguments of one time; they have the same names each time.
    """

    name: str
    baseline: str
    draw: Callable[[Samples], Arguments] = nothing

    @property
    def _function(self) -> str:
        return self.name.split("(")[0]

    def sql(self, arguments: Arguments) -> str:
        """Write the statement, the same whatever the values are."""
        return f"select krai_core.{self._function}({', '.join(f'{name} => %({name})s' for name in arguments)})"

    def send(self, schema: SyncPostgrestClient, arguments: Arguments) -> Any:
        """Ask through supabase-py, and return the answer."""
        return schema.rpc(self._function, dict(arguments)).execute().data


@dataclass(frozen=True)
class View:
    """Rows of a view.

    Attributes:
        name: for people.
        baseline: as of Function, and so is draw.
        view: its name.
        where: column, comparison as PostgREST calls it (eq, gt, gte, lt), and name of the argument.
        order: the column to sort by; empty: none.
        limit: how many rows; 0: all.
    """

    name: str
    baseline: str
    view: str
    draw: Callable[[Samples], Arguments] = nothing
    where: tuple[tuple[str, str, str], ...] = ()
    order: str = ""
    limit: int = 0

    def sql(self, _: Arguments) -> str:
        """Write the statement."""
        where = " and ".join(f"{column} {SIGNS[how]} %({name})s" for column, how, name in self.where)
        return (
            f"select * from krai_core.{self.view}"
            + (f" where {where}" if where else "")
            + (f" order by {self.order}" if self.order else "")
            + (f" limit {self.limit}" if self.limit else "")
        )

    def send(self, schema: SyncPostgrestClient, arguments: Arguments) -> Any:
        """Ask through supabase-py, and return the answer."""
        query = schema.from_(self.view).select("*")
        for column, how, name in self.where:
            query = getattr(query, how)(column, arguments[name])
        if self.order:
            query = query.order(self.order)
        if self.limit:
            query = query.limit(self.limit)
        return query.execute().data


Question: TypeAlias = Function | View


def one(samples: Samples) -> Arguments:
    """Any document."""
    return {"p_document_id": samples.document()}


def one_running(samples: Samples) -> Arguments:
    """One that is being worked on."""
    return {"p_document_id": samples.running()}


def one_and_stage(samples: Samples) -> Arguments:
    """Any document, and a stage."""
    return {"p_document_id": samples.document(), "p_stage_name": samples.stage()}


def one_in_view(samples: Samples) -> Arguments:
    """Any document, by the name that it has in a view."""
    return {"id": samples.document()}


def day_of_stage(samples: Samples) -> Arguments:
    """A day and a stage."""
    begin = samples.day()
    return {"stage": samples.stage(), "begin": begin.isoformat(), "end": (begin + timedelta(days=1)).isoformat()}


def listed(stage: str | None, status: str | None, baseline: str = naive.LIST) -> Function:
    """The first page of a list."""
    arguments = {"p_stage_name": stage, "p_status": status, "p_limit": PAGE}
    return Function(f"list_documents({stage or 'any stage'}, {status or 'any status'})", baseline, lambda _: arguments)


def listed_deep(stage: str | None, status: str | None) -> Function:
    """A deep page of a list."""

    def draw(samples: Samples) -> Arguments:
        place = samples.deep(stage, status)
        return {"p_stage_name": stage, "p_status": status, "p_limit": PAGE, "p_after": place}

    name = f"list_documents({stage or 'any stage'}, {status or 'any status'}), deep down"
    return Function(name, naive.DEEP, draw)


QUESTIONS: tuple[Question, ...] = (
    View("vw_stage_statistics", naive.STATISTICS, "vw_stage_statistics"),
    Function("get_stage_statistics()", naive.STATISTICS),
    View(
        "vw_stage_flow, one day of a stage",
        naive.FLOW,
        "vw_stage_flow",
        day_of_stage,
        (("stage_name", "eq", "stage"), ("hour", "gte", "begin"), ("hour", "lt", "end")),
    ),
    Function("get_forecast()", naive.STATISTICS),
    Function("get_document_status(document)", naive.ONE_IN_VIEW, one),
    Function("get_document_progress(document)", naive.PROGRESS, one),
    Function("get_weighted_progress(document)", naive.PROGRESS, one),
    Function("get_current_stage(document)", naive.CURRENT, one),
    Function("get_document_timeline(document)", naive.TIMELINE, one),
    Function("get_document_eta(document)", naive.ETA, one),
    Function("get_document_eta(running document)", naive.ETA, one_running),
    Function("can_start_stage(document, stage)", naive.CAN_START, one_and_stage),
    Function("explain_stage(document, stage)", naive.ONE, one_and_stage),
    View("vw_documents_by_stage, one", naive.ONE_IN_VIEW, "vw_documents_by_stage", one_in_view, (("id", "eq", "id"),)),
    View("vw_documents_by_stage, first 50", naive.FIRST_IN_VIEW, "vw_documents_by_stage", order="id", limit=PAGE),
    View(
        "vw_documents_by_stage, 50 somewhere",
        naive.FIRST_IN_VIEW,
        "vw_documents_by_stage",
        one_in_view,
        (("id", "gt", "id"),),
        "id",
        PAGE,
    ),
    listed(None, None, naive.LIST_ALL),
    listed("upload", "pending"),
    listed("search_indexing", "pending"),
    listed("embedding", "completed"),
    listed("image_processing", "skipped"),
    listed("classification", "failed"),
    listed("embedding", "processing"),
    listed(None, "failed"),
    listed(None, "processing", naive.RUNNING),
    listed_deep(None, None),
    listed_deep("embedding", "completed"),
    listed_deep("search_indexing", "pending"),
    Function(
        "list_documents(failed with timeout)", naive.FAILED_LIKE, lambda _: {"p_error": "timeout", "p_limit": PAGE}
    ),
    Function(
        "list_documents(failed by kind)",
        naive.FAILED_LIKE,
        lambda samples: {"p_fingerprint": samples.failure()[1], "p_limit": PAGE},
    ),
    Function("get_failures()", naive.FAILURES),
    Function("get_failures(stage)", naive.FAILURES, lambda samples: {"p_stage_name": samples.failure()[0]}),
    Function("get_failures(since)", naive.FAILURES, lambda samples: {"p_since": samples.day().isoformat()}),
    View("vw_running_stages", naive.RUNNING, "vw_running_stages"),
    Function("get_stuck_stages()", naive.RUNNING),
    Function("get_workers()", naive.RUNNING),
    Function(
        "get_documents_ready_for(text_extraction)",
        naive.READY,
        lambda _: {"p_stage_name": "text_extraction", "p_limit": PAGE},
    ),
    Function(
        "get_documents_ready_for(search_indexing)",
        naive.READY,
        lambda _: {"p_stage_name": "search_indexing", "p_limit": PAGE},
    ),
    Function(
        "get_documents_ready_for(text_extraction), deep down",
        naive.READY,
        lambda samples: {"p_stage_name": "text_extraction", "p_limit": PAGE, "p_after": samples.deep_in_queue()},
    ),
)
