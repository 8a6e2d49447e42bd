"""What create_router refuses."""

import subprocess
import sys
from typing import Any

import pytest

from processors_v2.api import create_router
from processors_v2.errors import ConfigurationError


@pytest.mark.parametrize("wrong", [None, "https://abc.supabase.co"])
def test_what_is_no_tracker_is_refused_at_once(wrong: Any) -> None:
    """The error says what to pass."""
    with pytest.raises(ConfigurationError, match="not a tracker. Pass a StageTracker, an AsyncStageTracker, or a dep"):
        create_router(wrong)


def test_without_the_extra_the_error_names_it() -> None:
    """Whoever has installed the core alone is told what to install."""
    program = "import sys; sys.modules['fastapi'] = None; import processors_v2.api"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "pip install 'stage-tracker[api]'" in done.stderr
