"""What single methods of the tracker answer: a dict or a list, with a table for notebooks and a DataFrame.

They are equal to the plain dict or list that type checkers take them for, and the same as JSON.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, cast

from processors_v2._display import html, rows
from processors_v2._display.frames import frame
from processors_v2._shapes.document import StageStatus
from processors_v2._shapes.questions import FailureGroup, TimelineRun
from processors_v2._shapes.questions_estimates import StageForecast
from processors_v2._shapes.questions_statistics import StageCounts, StageFlow
from processors_v2._shapes.questions_work import RunningStage

T = TypeVar("T")


def as_table(kind: Callable[[Any], object], answer: T) -> T:
    """Return an answer as one of the classes below; its type says what people may rely on."""
    return cast("T", kind(answer))


class StageTable(dict[str, StageStatus]):
    """Stages of a document by name."""

    def _repr_html_(self) -> str:
        return html.page(rows.stages(self))

    def to_pandas(self) -> Any:
        """Return a pandas.DataFrame with a row for each stage; needs the extra ``pandas``."""
        return frame(self.values(), StageStatus, list(self))


class DocumentTable(dict[str, Any]):
    """A document with its stages."""

    def _repr_html_(self) -> str:
        head = html.element(
            "div",
            html.element("b", html.status(self["status"])),
            html.element("span", f" · current stage: {self['current_stage']} · "),
            rows.progress(self["progress"], "failed" if self["status"] == "failed" else "completed"),
            html.element("div", f"document {self['document_id']}"),
        )
        return html.page(head, rows.stages(self["stage_status"]))

    def to_pandas(self) -> Any:
        """Return a pandas.DataFrame with a row for each stage; needs the extra ``pandas``."""
        return frame(self["stage_status"].values(), StageStatus, list(self["stage_status"]))


class StatisticsTable(dict[str, StageCounts]):
    """Counts and durations by stage."""

    def _repr_html_(self) -> str:
        return html.page(rows.statistics(self))

    def to_pandas(self) -> Any:
        """Return a pandas.DataFrame with a row for each stage; needs the extra ``pandas``."""
        return frame(self.values(), StageCounts, list(self))


class TimelineTable(dict[str, Any]):
    """All runs of a document."""

    def _repr_html_(self) -> str:
        name = html.element("b", self["filename"] or "")
        return html.page(html.element("div", name, f" {self['document_id']}"), rows.runs(self["runs"]))

    def to_pandas(self) -> Any:
        """Return a pandas.DataFrame with a row for each run; needs the extra ``pandas``."""
        return frame(self["runs"], TimelineRun)


class FailureTable(dict[str, Any]):
    """Failed stages by the kind of their error."""

    def _repr_html_(self) -> str:
        looked_at = f"{self['looked_at']} failed stages" + ("" if self["is_all"] else ", the newest of more")
        return html.page(html.element("div", looked_at), rows.failures(self["groups"]))

    def to_pandas(self) -> Any:
        """Return a pandas.DataFrame with a row for each kind of error; needs the extra ``pandas``."""
        return frame(self["groups"], FailureGroup)


class ForecastTable(dict[str, Any]):
    """What to expect of the queues, by stage."""

    def _repr_html_(self) -> str:
        said = (
            f"{html.time(self['timestamp'])} UTC · {html.number(self['documents_per_hour'])} documents per hour"
            f" · looked back for {html.seconds(3600 * self['hours'])} · {rows.UNKNOWN} never, or not known"
        )
        return html.page(html.element("div", said), rows.forecast(self["stages"]))

    def to_pandas(self) -> Any:
        """Return a pandas.DataFrame with a row for each stage; needs the extra ``pandas``."""
        return frame(self["stages"].values(), StageForecast, list(self["stages"]))


class FlowTable(list[StageFlow]):
    """What came, began and ended by stage and hour."""

    def _repr_html_(self) -> str:
        return html.page(rows.flow(self))

    def to_pandas(self) -> Any:
        """Return a pandas.DataFrame with a row for each stage and hour; needs the extra ``pandas``."""
        return frame(cast("Iterable[Mapping[str, Any]]", self), StageFlow)


class RunningTable(list[RunningStage]):
    """Stages that are being worked on."""

    def _repr_html_(self) -> str:
        return html.page(rows.running(self))

    def to_pandas(self) -> Any:
        """Return a pandas.DataFrame with a row for each of them; needs the extra ``pandas``."""
        return frame(cast("Iterable[Mapping[str, Any]]", self), RunningStage)
