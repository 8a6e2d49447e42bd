"""What the endpoints answer, as OpenAPI tells it. Answers come from the database and are not checked against it."""

from types import GenericAlias
from typing import Any, get_args, get_origin, get_type_hints, is_typeddict

from pydantic import BaseModel, Field, create_model

from processors_v2._shapes.document import DocumentStatus
from processors_v2._shapes.questions_statistics import StageCounts


def _model_of(shape: Any) -> type[BaseModel]:
    """Return a TypedDict as a model, because pydantic reads none that is made with typing before Python 3.12."""
    fields: dict[str, Any] = {name: (_modelled(hint), ...) for name, hint in get_type_hints(shape).items()}
    return create_model(shape.__name__, __doc__=shape.__doc__, **fields)


def _modelled(hint: Any) -> Any:
    if is_typeddict(hint):
        return _model_of(hint)
    if get_origin(hint) is dict:
        key, value = get_args(hint)
        return GenericAlias(dict, (key, _modelled(value)))
    return hint


class Problem(BaseModel):
    """Why a request was not answered."""

    detail: str = Field(description="What is wrong, with the value concerned.")
    hint: str | None = Field(description="What to do about it.")
    error: str | None = Field(description="The same as a word for programs.")


Document = _model_of(DocumentStatus)
Statistics = create_model(
    "Statistics",
    __doc__="The counts of all stages at one moment.",
    timestamp=(str, Field(description="ISO 8601, UTC, database clock.")),
    stages=_modelled(dict[str, StageCounts]),
)
