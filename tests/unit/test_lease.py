"""The ten minutes of a GPU are spent as planned, and what did not run is said: a clock and a runner that are made up."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.gpu.lease import LIMIT_S, STEPS, Found, Step, run_steps, table


class Machine:
    """Takes `seconds` for each step, however long it may."""

    def __init__(self, seconds: float, xml: str = "", code: int = 0) -> None:
        self.seconds, self.xml, self.code = seconds, xml, code
        self.time = 0.0
        self.ran: list[str] = []

    def run(self, arguments: Sequence[str], environment: dict[str, str], limit: float) -> tuple[int, str]:
        self.ran.append(" ".join(arguments))
        self.time += min(self.seconds, limit)
        for word in arguments:
            if self.xml and word.startswith("--junitxml="):
                Path(word.partition("=")[2]).write_text(self.xml)
            if word.endswith(".json"):
                Path(word.rpartition("=")[2]).write_text('{"rows": []}')
        return (124, "") if self.seconds > limit else (self.code, "last words\n")

    def go(self, folder: Path, steps: Sequence[Step] = STEPS, lacking: tuple[str, ...] = ()) -> list[Found]:
        return run_steps(steps, folder, self.run, lambda: self.time, lambda package: package not in lacking)


RIGHT = '<testsuites><testsuite tests="3" failures="0" errors="0" skipped="0"/></testsuites>'


def test_it_never_takes_more_than_nine_minutes(tmp_path: Path) -> None:
    machine = Machine(10_000.0)
    found = machine.go(tmp_path)
    assert machine.time <= LIMIT_S
    assert [each.name for each in found] == [step.name for step in STEPS], "every step is accounted for"
    assert not any(each.ok for each in found)
    assert {"took too long", "did not run: the time is over"} == {each.said for each in found}


def test_everything_right_is_right(tmp_path: Path) -> None:
    found = Machine(5.0, RIGHT).go(tmp_path)
    assert all(each.ok for each in found)
    assert "3 right, 0 wrong, 0 skipped" in table(found)


@pytest.mark.parametrize(
    ("counts", "code"),
    [
        ('tests="3" failures="1" skipped="0"', 1),
        ('tests="3" failures="0" skipped="3"', 0),
        ('tests="0" failures="0" skipped="0"', 5),
    ],
)
def test_what_failed_or_did_not_run_is_not_right(tmp_path: Path, counts: str, code: int) -> None:
    """Where there is no device every test is skipped, and pytest is content."""
    machine = Machine(5.0, f"<testsuites><testsuite {counts}/></testsuites>", code)
    assert not machine.go(tmp_path, STEPS[:1])[0].ok


def test_a_package_that_is_missing_costs_only_its_step(tmp_path: Path) -> None:
    found = {each.name: each for each in Machine(5.0, RIGHT).go(tmp_path, lacking=("deepspeed", "ray"))}
    assert found.pop("engine").said == "did not run: deepspeed missing"
    assert all(each.ok for each in found.values())
    assert not any({"deepspeed", "ray"} & set(step.needs) for step in STEPS[: len(STEPS) // 2])


def test_every_step_chooses_something() -> None:
    """A word of `-k` that no test has any more would choose nothing."""
    names = {path.name: path.read_text() for path in Path(__file__).parents[1].joinpath("gpu").glob("test_*.py")}
    for step in STEPS:
        chosen = step.command[step.command.index("-k") + 1] if "-k" in step.command else ""
        for word in chosen.replace("not (", "").replace(")", "").split(" or "):
            assert not word or any("def test_" in text and word in text for text in names.values()), word


def test_without_a_gpu_it_says_so_and_is_not_green(tmp_path: Path) -> None:
    only = "(replace(lease.STEPS[4], longest_s=500),)"  # a busy machine is given time
    script = f"from dataclasses import replace; from tests.gpu import lease; lease.STEPS = {only}; raise SystemExit(lease.main())"
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=600)
    (found,) = json.loads((tmp_path / "lease.json").read_text())
    if "1 skipped" in found["said"]:
        assert done.returncode == 1 and not found["ok"] and "NOT" in done.stdout
    else:
        assert done.returncode == 0 and found["ok"], done.stdout
