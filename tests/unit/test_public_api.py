"""The public names, and that they say what they are."""

import ast
import inspect
from typing import Any

import pytest

from processors_v2 import errors, models, stage_tracker
from processors_v2.stage_tracker import (
    AsyncClaimedRun,
    AsyncStageContext,
    AsyncStageTracker,
    ClaimedRun,
    StageContext,
    StageTracker,
)


@pytest.mark.parametrize("module", [errors, models, stage_tracker], ids=lambda module: module.__name__)
def test_all_is_sorted_and_complete(module: Any) -> None:
    """__all__ of a public module has every public name that is imported there, in order."""
    tree = ast.parse(inspect.getsource(module))
    names = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if not (alias.asname or alias.name).startswith("_")
    }
    assert module.__all__ == sorted(names)


def test_every_public_name_has_a_docstring() -> None:
    """Classes, methods and modules that people import say what they do."""
    for module in (errors, models, stage_tracker):
        assert module.__doc__
        for name in module.__all__:
            assert not inspect.isclass(getattr(module, name)) or getattr(module, name).__doc__, name
    for owner in (StageTracker, StageContext, ClaimedRun, AsyncStageTracker, AsyncStageContext, AsyncClaimedRun):
        for name, member in inspect.getmembers(owner):
            if not name.startswith("_") and callable(member):
                assert member.__doc__, name
