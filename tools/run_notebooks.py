"""Run examples/*.ipynb from top to bottom and keep what they print; with --check: compare, and write nothing.

    python tools/run_notebooks.py [--check] [NOTEBOOK ...]

Ids, times, durations, other numbers with a decimal point, the order of the rows of a table and pictures may differ from
run to run. Of the metadata only the kernel is kept. Needs the extras local and notebooks.
"""

import argparse
import difflib
import html
import re
import sys
from pathlib import Path

import matplotlib.font_manager  # noqa: F401 - the first import writes a cache, and says so if it takes long
import nbformat
from nbclient import NotebookClient

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
CELL_SECONDS = 60

# Applied in this order to what can be read of an output.
VARYING = [
    (r"<[^>]+>", " "),
    (r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "<id>"),
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(\.\d+)?(Z|\+00:00)?", "<time>"),
    (r"\d+ min \d\d s|[\d,]*\.?\d+ (s|h|min)\b", "<duration>"),
    (r"-?[\d,]*\d\.\d+(e-?\d+)?", "<number>"),
    (r"\s+", " "),
]


def execute(path: Path) -> nbformat.NotebookNode:
    """Run a notebook in its folder and return it with its outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell raised; the message shows it.
    """
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        # It would warn that the ports of this machine carry its messages as they are.
        extra_arguments=["--log-level=ERROR"],
        timeout=CELL_SECONDS,
        resources={"metadata": {"path": str(path.parent)}},
        record_timing=False,
        coalesce_streams=True,
    ).execute()
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
    return notebook


def readable(notebook: nbformat.NotebookNode) -> list[str]:
    """Return a line for each output: the cell, the kind, and what a person reads of it without what varies."""
    lines = []
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            kind = next((kind for kind in ("image/png", "text/html", "text/plain") if kind in data), output.output_type)
            text = output.get("text", "") if kind == "stream" else data.get(kind, "")
            lines.append(f"cell {number}: {kind}: {'' if kind == 'image/png' else without_varying(text)}")
    return lines


def without_varying(text: str) -> str:
    """Return a text or some HTML as one line that is the same in each run."""
    rows = text.split("</tr>")
    for pattern, word in VARYING:
        rows = [re.sub(pattern, word, row).strip() for row in rows]
    return html.unescape(" | ".join(sorted(rows)))


def complaints(notebook: nbformat.NotebookNode) -> list[str]:
    """Return what was written to stderr."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [f"stderr: {output.text}" for output in outputs if output.get("name") == "stderr"]


def main() -> int:
    """Run, and write or compare; 1 where a comparison found something."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 when something differs")
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="NOTEBOOK", help="default: all in examples/")
    arguments = parser.parse_args()
    found = 0
    for path in arguments.notebooks or sorted(EXAMPLES.glob("*.ipynb")):
        kept, made = nbformat.read(path, as_version=4), execute(path)
        lines = complaints(made)
        if arguments.check:
            lines += difflib.unified_diff(readable(kept), readable(made), "kept", "made", lineterm="", n=0)
        else:
            nbformat.write(made, path)
        print("\n".join([f"{path.name}: {len(made.cells)} cells, {len(lines)} complaints", *lines]))
        found += len(lines)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
