"""Requests about the stages of the pipeline. No I/O, no rules."""

from collections.abc import Iterable
from typing import Any

from processors_v2._calls.arguments import TextArray, text_of
from processors_v2._calls.call import Call, writer
from processors_v2._shapes.pipeline import Stage

_STAGES = """
select coalesce(jsonb_agg(to_jsonb(s) || jsonb_build_object('requires', (
    select coalesce(jsonb_agg(jsonb_build_object('requires', p.requires)), '[]')
    from krai_core.stage_prerequisites p where p.stage_name = s.name
)) order by s.position), '[]') from krai_core.stages s
"""


def list_stages() -> Call[list[Stage]]:
    """krai_core.stages with their prerequisites, in pipeline order."""

    def parse(answer: object) -> list[Stage]:
        rows = answer if isinstance(answer, list) else []
        return [
            Stage.model_validate({**row, "requires": sorted(r["requires"] for r in row["requires"])}) for row in rows
        ]

    query = "select=*,requires:stage_prerequisites!stage_prerequisites_stage_name_fkey(requires)&order=position"
    return Call(f"stages?{query}", None, parse, repeatable=True, sql=_STAGES)


def register_stage(stage: str, requires: Iterable[str] | None, actor: str | None, **settings: Any) -> Call[bool]:
    """krai_core.register_stage; settings as its parameters, without ``p_``."""
    arguments = {
        "p_stage_name": stage,
        "p_requires": None if requires is None else TextArray(requires),
        "p_actor": text_of(actor),
        **{f"p_{name}": value for name, value in settings.items()},
    }
    return writer("register_stage", arguments, None)


def disable_stage(stage: str, actor: str | None) -> Call[bool]:
    """krai_core.disable_stage."""
    return writer("disable_stage", {"p_stage_name": stage, "p_actor": text_of(actor)}, None)
