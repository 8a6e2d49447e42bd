"""Where the command begins, also where the extra ``cli`` is not installed."""

import io
import sys

_EXTRA = {"typer", "rich", "tomlkit"}


def main() -> int:
    """Run the command that the arguments of this process name.

    Returns:
        The exit code; see processors_v2._cli.exits.
    """
    try:
        from processors_v2._cli.app import app  # noqa: PLC0415 - needs the extra
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in _EXTRA:
            raise
        sys.stderr.write(f"stage-tracker needs {name}: pip install 'stage-tracker[cli]'\n")
        return 2
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A sign that the terminal cannot show is no reason to end.
            stream.reconfigure(errors="replace")
    app(prog_name="stage-tracker")
    return 0
