"""What an installed wheel brings."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from processors_v2._local import project

ROOT = Path(__file__).parents[2]
MIGRATIONS = ROOT / "supabase" / "migrations"


@pytest.fixture(scope="module")
def wheel(wheel_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this clone, unpacked."""
    folder = tmp_path_factory.mktemp("unpacked")
    zipfile.ZipFile(wheel_file).extractall(folder)
    return folder


def test_the_wheel_carries_every_migration(wheel: Path) -> None:
    """A project that installs the package gets the same migrations as one that clones the repository."""
    expected = {path.name: path.read_bytes() for path in MIGRATIONS.glob("*.sql")}
    assert expected
    assert {path.name: path.read_bytes() for path in (wheel / "processors_v2" / "migrations").glob("*.sql")} == expected


def test_the_wheel_carries_every_edge_function(wheel: Path) -> None:
    """`stage-tracker init --functions` of an installed package copies what the clone has."""
    ours = ROOT / "supabase" / "functions"
    expected = {path.relative_to(ours): path.read_bytes() for path in ours.rglob("*") if path.is_file()}
    packed = wheel / "processors_v2" / "functions"
    assert expected
    assert {path.relative_to(packed): path.read_bytes() for path in packed.rglob("*") if path.is_file()} == expected


def test_the_installed_package_finds_its_own_files(wheel: Path) -> None:
    """The resolvers look inside the package first, far from any clone."""
    script = (
        "import json, sys; sys.path.insert(0, sys.argv[1])\n"
        "from processors_v2._local import project\n"
        "print(json.dumps([str(project.migrations_folder()), str(project.functions_folder()), project.max_rows()]))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script, str(wheel)],
        cwd=wheel,
        check=True,
        capture_output=True,
        text=True,
    )
    package = wheel / "processors_v2"
    assert json.loads(done.stdout) == [str(package / "migrations"), str(package / "functions"), project.max_rows()]


@pytest.mark.parametrize(
    "name", ["py.typed", "_local/watchdog.py", "_local/roles.sql", "_local/database.sql", "pytest_plugin.py"]
)
def test_the_wheel_carries_what_is_no_module(wheel: Path, name: str) -> None:
    """Type information, the SQL of the stack and the watchdog script are packed as well."""
    assert (wheel / "processors_v2" / name).is_file()


def test_the_plugin_waits_for_the_users_conftest(tmp_path: Path) -> None:
    """A conftest that puts the user's own folder processors_v2 on the path, then names the plugin, has both."""
    own = tmp_path / "backend" / "processors_v2"
    own.mkdir(parents=True)
    (own / "their_processor.py").write_text("VALUE = 42")
    (tmp_path / "conftest.py").write_text(
        "import sys\n"
        "sys.path.insert(0, 'backend')\n"
        "from processors_v2.their_processor import VALUE\n"
        "pytest_plugins = ['processors_v2.pytest_plugin']\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--fixtures", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "local_supabase [session scope]" in done.stdout, done.stdout + done.stderr


def test_the_clone_uses_its_own_migrations() -> None:
    """Whoever works in the clone tests the files that are there."""
    assert project.migrations_folder() == MIGRATIONS


def test_users_keep_a_folder_of_the_same_name(wheel: Path, tmp_path: Path) -> None:
    """Modules of a project's own folder processors_v2 are imported beside those of this package."""
    own = tmp_path / "processors_v2"
    own.mkdir()
    (own / "their_processor.py").write_text("VALUE = 42")
    script = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "import processors_v2.their_processor, processors_v2._local.project\n"
        "print(processors_v2.their_processor.VALUE)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script, str(wheel), str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "42\n"
