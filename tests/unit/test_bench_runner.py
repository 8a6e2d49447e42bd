"""The runner of benchmarks and campaigns."""

import json
from pathlib import Path

import pytest

from benchmarks._shared.runner import BENCHMARKS, CAMPAIGNS, Group, main

BENCHMARK = '''"""Made up, to be run.

More of it."""

TAKES = "no time"
PARTS = (("left", "right"), ("1", "10"))

def run(bench):
    for group in PARTS:
        print("wanted:", *[part for part in group if bench.wants(part, group)])
    done = list(bench.progress(range(3), "counting"))
    bench.add("quick", float(bench.quick), "")
    bench.add("counted", len(done), "1/s", baseline=2.0, ratio=1.5, target="at least 3", ok={ok})
'''


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "type[Run]":
    """Run a made-up benchmark that lies in the folder of benchmarks as far as Python can tell."""
    monkeypatch.setattr("benchmarks.__path__", [str(tmp_path)])
    Run.folder = tmp_path
    return Run


class Run:
    """One run of the runner."""

    folder: Path

    def __init__(self, *arguments: str, ok: bool | None = None) -> None:
        name = f"made_up_{ok}".lower()
        (self.folder / f"{name}.py").write_text(BENCHMARK.format(ok=ok))
        self.code = main(BENCHMARKS, arguments=[name if part == "NAME" else part for part in arguments])


@pytest.mark.parametrize(("ok", "code"), [(True, 0), (False, 1), (None, 0)])
def test_the_exit_code_says_whether_targets_were_met(run: type[Run], ok: bool | None, code: int) -> None:
    """A missed target fails the run, a figure without a target does not."""
    assert run("NAME", ok=ok).code == code


def test_figures_go_to_the_table_and_to_the_file(
    run: type[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file holds each figure with all seven keys, the table each with its verdict."""
    run("NAME", "--quick", "--json", str(tmp_path / "figures.json"), ok=True)
    assert json.loads((tmp_path / "figures.json").read_text()) == [
        {"name": "quick", "value": 1.0, "unit": "", "baseline": None, "ratio": None, "target": None, "ok": None},
        {
            "name": "counted",
            "value": 3,
            "unit": "1/s",
            "baseline": 2.0,
            "ratio": 1.5,
            "target": "at least 3",
            "ok": True,
        },
    ]
    assert "at least 3" in capsys.readouterr().out


@pytest.mark.parametrize("name", [[], ["unheard_of"]])
def test_without_a_known_name_it_lists_what_there_is(
    run: type[Run], name: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """No name and a wrong name both show the names, with how long each takes and what it does."""
    assert run(*name, ok=None).code == 2
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("made_up_none", "no time", "Made up, to be run."))
    assert "More of it" not in printed


NAMES = {
    BENCHMARKS: {"bulk", "drain", "fences", "rpc", "scale", "start", "throughput"},
    CAMPAIGNS: {"chaos", "migration", "model", "soak"},
}


@pytest.mark.parametrize(("groups", "command"), [((BENCHMARKS, CAMPAIGNS), "bench"), ((CAMPAIGNS,), "proof")])
def test_bench_knows_all_names_and_proof_the_campaigns(
    groups: tuple[Group, ...], command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The list has a part for each group that the command looks names up in."""
    assert {group: set(group.names()) for group in NAMES} == NAMES
    assert main(*groups, arguments=["unheard_of"]) == 2
    printed = capsys.readouterr().out
    listed = {line.split()[1] for line in printed.splitlines() if line.startswith("│")} - {"│"}
    assert listed == set().union(*(NAMES[group] for group in groups))
    assert f"./dev {command} NAME" in printed


@pytest.mark.parametrize(
    ("only", "wanted"),
    [
        ("", ["left right", "1 10"]),
        ("right", ["right", "1 10"]),
        ("left,10", ["left", "10"]),
    ],
)
def test_of_each_group_of_parts_the_named_ones_are_done_or_all(
    run: type[Run], only: str, wanted: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Naming a part leaves out the others of its group, and no other group."""
    run("NAME", "--only", only)
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("wanted")] == [
        f"wanted: {parts}" for parts in wanted
    ]


def test_an_unknown_part_is_refused_with_the_known_ones(run: type[Run], capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is measured, and the message names what there is."""
    assert run("NAME", "--only", "left,middle").code == 2
    printed = capsys.readouterr().out
    assert "no part middle" in printed
    assert "1, 10, left, right" in printed
    assert "wanted" not in printed
