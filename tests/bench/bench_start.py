"""What the start of a run costs, in seconds of processor time: `python -m tests.bench.bench_start [--repeats 5]`.

A toy run of three tasks on two workers and a Ray of its own, read from /proc until its first job is dispatched and until its end;
and `atlas-dist plan` of the same words, on a backbone that no process has loaded before and again. Processor time, for it hardly
depends on what else the machine does; the median of the repeats.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from statistics import median

from atlas_dist.app.child import RunProcess
from tests.kits.stage import pack_toys, toy_config

TOY = ["experiment=toy", "sequence.upstream=[toy_shape,toy_kin]", "train.budget.max_steps=12", "train.precision=fp32"]
TICKS = os.sysconf("SC_CLK_TCK")


def kind_of(pid: int) -> str:
    """Ray names its processes `ray::…`, its daemons by their files."""
    title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    if "atlas_dist run" in title:
        return "driver"
    name = title.partition("ray::")[2].partition(" ")[0].partition(".")[0] if "ray::" in title else ""
    return name or "Ray's daemons"


def spent_by(run: RunProcess, seen: dict[int, tuple[str, float]]) -> None:
    """Note what each process of a run has used so far; one that is gone keeps what it had."""
    for pid in {run.process.pid, *run.left_running(patience_s=0)}:
        with suppress(OSError, IndexError):
            if not Path(f"/proc/{pid}/cmdline").read_bytes():
                continue  # it has ended, and has no name any more
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            seen[pid] = (kind_of(pid), (int(fields[11]) + int(fields[12])) / TICKS)


def of_a_run(words: list[str], folder: Path) -> tuple[Counter[str], Counter[str]]:
    """Kind of process -> seconds until the first job was dispatched, and until the end."""
    run = RunProcess(words, folder / "run.log")
    seen: dict[int, tuple[str, float]] = {}
    started: Counter[str] = Counter()
    try:
        while run.process.poll() is None:
            spent_by(run, seen)
            if not started and "dispatch " in run.text():
                started = summed(seen)
            time.sleep(0.2)
        if run.process.returncode:
            raise SystemExit(run.text()[-2000:])
    finally:
        run.sweep()
    return started, summed(seen)


def summed(seen: dict[int, tuple[str, float]]) -> Counter[str]:
    """Seconds of each kind."""
    out: Counter[str] = Counter()
    for kind, seconds in seen.values():
        out[kind] += seconds
    return out


def of_plan(words: list[str], cache: Path) -> float:
    """`atlas-dist plan`, seconds of processor time."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    command = [sys.executable, "-m", "atlas_dist", "plan", *words]
    done = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    _, code, used = os.wait4(done.pid, 0)
    if code:
        raise SystemExit(f"plan ended with {code}")
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measure, print tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    plans: list[tuple[float, float]] = []
    runs: list[tuple[Counter[str], Counter[str]]] = []
    with tempfile.TemporaryDirectory(prefix="atlas-start-") as name:
        folder = Path(name)
        pack_toys(toy_config(folder), samples=64)
        for repeat in range(options.repeats):
            words = [*TOY, f"store.url={folder}/store{repeat}", f"shards.url={folder}/shards", f"report={folder}/report"]
            plans.append((of_plan(words, folder / f"cache{repeat}"), of_plan(words, folder / f"cache{repeat}")))
            runs.append(of_a_run(words, folder))
    print("| process | until the first dispatch, s | whole run, s |\n|---|---|---|")
    whole = [end for _, end in runs]
    for kind in sorted({kind for end in whole for kind in end}, key=lambda kind: -median(end[kind] for end in whole)):
        print(f"| {kind} | {median(start[kind] for start, _ in runs):.1f} | {median(end[kind] for end in whole):.1f} |")
    totals = [(start.total(), end.total()) for start, end in runs]
    print(f"| all | {median(start for start, _ in totals):.1f} | {median(end for _, end in totals):.1f} |")
    first, again = (median(column) for column in zip(*plans, strict=True))
    print(f"\n`plan`: {first:.1f} s where nobody has loaded the backbone, {again:.1f} s again.")


if __name__ == "__main__":
    main()
