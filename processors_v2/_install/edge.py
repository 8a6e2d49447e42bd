"""Which files of the Edge Functions a project lacks."""

from dataclasses import dataclass
from pathlib import Path

from processors_v2._install.folders import check_folder, content_of
from processors_v2._local.project import functions_folder


@dataclass(frozen=True)
class Files:
    """Files below ``supabase/functions``, by their path there.

    Attributes:
        present: There already, word for word.
        changed: There with another text; they are left as they are.
        added: What is to be written: path and content.
    """

    present: list[str]
    changed: list[str]
    added: list[tuple[str, bytes]]


def compare(folder: Path) -> Files:
    """Compare the functions of a project with ours.

    Args:
        folder: ``supabase/functions`` of the project; need not exist.

    Raises:
        ConfigurationError: Something else than a file or a folder has the name of one.
    """
    files = Files([], [], [])
    ours = functions_folder()
    for path in sorted(path for path in ours.rglob("*") if path.is_file()):
        name, content = path.relative_to(ours).as_posix(), path.read_bytes()
        check_folder((folder / name).parent)
        found = content_of(folder / name)
        if found is None:
            files.added.append((name, content))
        else:
            same = found.replace(b"\r\n", b"\n") == content
            (files.present if same else files.changed).append(name)
    return files
