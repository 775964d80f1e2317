"""What `lease.sh` runs: steps one after the other while there is time, one JSON, one table. The standard library alone: it must
be able to say what is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

LIMIT_S = 540.0
"""Seconds in all."""
RESERVE_S = 10.0
"""Seconds that are kept for writing down what was found."""


@dataclass(frozen=True)
class Step:
    """One thing to find out. `needs`: packages beside torch and transformers."""

    name: str
    command: tuple[str, ...]
    longest_s: float
    needs: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Found:
    """How a step ended; `ok` only when it ran on the device and was right."""

    name: str
    ok: bool
    seconds: float
    said: str
    figures: Any = None


def tests(name: str, chosen: str, longest_s: float, *needs: str) -> Step:
    """A step of pytest over `chosen` (`-k`), without the project's configuration, which wants plugins."""
    own = ("-c", os.devnull, "--rootdir=.", "--noconftest", "-p", "no:cacheprovider")
    own += ("-q", "-m", "gpu", "--junitxml={folder}/{name}.xml")
    return Step(name, ("-m", "pytest", "tests/gpu", *own, *(("-k", chosen) if chosen else ())), longest_s, ("pytest", *needs))


def bench(name: str, *words: str, longest_s: float, environment: dict[str, str] | None = None) -> Step:
    """A step of `tests.bench.bench_step`."""
    command = ("-m", "tests.bench.bench_step", "--device", "cuda", "--json={folder}/{name}.json", *words)
    return Step(name, command, longest_s, environment=environment or {})


SLOW = "padded or repeatable or broken_process or leave_no_memory or compiled"
STEPS = (
    tests("right", f"not ({SLOW})", 120),
    tests("padded", "padded", 90),
    bench("step", "--profile", "--adapters", "1", "8", "--peers", "ours", "backbone", "stock", "--repeats", "5", longest_s=120),
    tests("repeatable", "repeatable", 90),
    tests("leaves_no_memory", "leave_no_memory", 40),
    tests("broken_process", "broken_process", 60, "pydantic", "boto3"),
    Step("engine", ("-m", "tests.gpu.engine_waits", "{folder}/{name}.json"), 60, ("deepspeed",)),
    bench("compiled", "--compile", "--adapters", "1", "--peers", "ours", "--repeats", "3", longest_s=120,
          environment={"TORCH_LOGS": "recompiles"}),
)  # fmt: skip

Run = Callable[[Sequence[str], dict[str, str], float], "tuple[int, str]"]
"""(arguments of Python, environment, seconds) -> exit code (124: it took too long), output."""


def run_steps(steps: Sequence[Step], folder: Path, run: Run, now: Callable[[], float], has: Callable[[str], bool]) -> list[Found]:
    """Run what there is time for, in order. Nothing is left out without a word."""
    end = now() + LIMIT_S - RESERVE_S
    found = []
    for step in steps:
        began = now()
        lacking = [package for package in step.needs if not has(package)]
        if lacking:
            found.append(Found(step.name, False, 0.0, f"did not run: {', '.join(lacking)} missing"))
            continue
        if end - began < 5.0:
            found.append(Found(step.name, False, 0.0, "did not run: the time is over"))
            continue
        command = [word.format(folder=folder, name=step.name) for word in step.command]
        code, output = run(command, step.environment, min(step.longest_s, end - began))
        (folder / f"{step.name}.log").write_text(output)
        ok, said, figures = judged(folder, step.name, code, output)
        found.append(Found(step.name, ok, round(now() - began, 1), said, figures))
    return found


def judged(folder: Path, name: str, code: int, output: str) -> tuple[bool, str, Any]:
    """Whether a step was right, a line about it, and its figures."""
    if code == 124:
        return False, "took too long", None
    counts = folder / f"{name}.xml"
    figures = folder / f"{name}.json"
    if counts.exists():
        suite = next(iter(ElementTree.parse(counts).iter("testsuite")))
        total, wrong, skipped = (int(suite.get(key, "0")) for key in ("tests", "failures", "skipped"))
        wrong += int(suite.get("errors", "0"))
        said = f"{total - wrong - skipped} right, {wrong} wrong, {skipped} skipped"
        return code == 0 and total > skipped == 0, said, {"tests": total, "wrong": wrong, "skipped": skipped}
    if figures.exists():
        return code == 0, "see its figures", json.loads(figures.read_text())
    last = next((line for line in reversed(output.splitlines()) if line.strip()), "nothing was said")
    return False, f"exit code {code}: {last.strip()[:100]}", None


def run_python(arguments: Sequence[str], environment: dict[str, str], seconds: float) -> tuple[int, str]:
    """`Run` with this interpreter."""
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            env=os.environ | environment,
            timeout=seconds,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    except subprocess.TimeoutExpired as error:
        said = error.stdout or b""
        return 124, said.decode(errors="replace") if isinstance(said, bytes) else said
    return done.returncode, done.stdout


def table(found: Sequence[Found]) -> str:
    """For people."""
    rows = [f"{each.name:18} {'right' if each.ok else 'NOT':5} {each.seconds:>6.1f} s  {each.said}" for each in found]
    for each in found:
        for row in (each.figures or {}).get("rows", ()) if isinstance(each.figures, dict) else ():
            rows += [f"  {each.name}: stage {row['stage']}, T={row['T']}, {row['peer']}: {row['ms']:.1f} ms"]
    return "\n".join(rows)


def main() -> int:
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    found = run_steps(STEPS, folder, run_python, time.monotonic, lambda package: find_spec(package) is not None)
    (folder / "lease.json").write_text(json.dumps([asdict(each) for each in found], indent=1) + "\n")
    print(table(found))
    return 0 if all(each.ok for each in found) else 1


if __name__ == "__main__":
    raise SystemExit(main())
