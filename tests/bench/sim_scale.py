"""How far does one coordinator carry? `python -m tests.bench.sim_scale` (a quarter of an hour; `--quick` for seconds).

A discrete-event simulation of 8 to 1,024 nodes on 1,000-task sequences. The decisions, the ledger entries and the fold are the
real ones (`core/schedule`, `core/ledger`), measured while they run; requests a job are counted from the real coordinator over a
counting store; only training is pretended, with the costs below. Worker groups of eight nodes take one sequence each; evaluations
are backfill.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import random
import resource
import time
from dataclasses import dataclass, field, replace
from typing import Any

from atlas_dist.core.attempts import Blob, FailureKind
from atlas_dist.core.keys import sha256_hex
from atlas_dist.core.ledger import GENESIS, Entry, fold
from atlas_dist.core.plan import Plan
from atlas_dist.core.records import Abandon, Begin, Commit, Dispatch, Elect, Fail, Finish, Record
from atlas_dist.core.schedule import AbandonAttempt, Capacity, Frontier, Pool, QuarantineJob, StartJob, next_actions
from atlas_dist.core.state import RunState
from atlas_dist.core.types import JobKind, StageJob, TaskKind, TaskSpec
from tests.bench.s3_requests import requests_a_job, requests_a_second
from tests.chaos.plans import small_plan

DAY = 86_400.0
PUT_PRICE, GET_PRICE = 5.0e-6, 4.0e-7
"""Dollars a request: S3 Standard's list price for PUT and LIST, and for GET and HEAD."""


@dataclass(frozen=True)
class Costs:
    """Seconds that things take. `measured` ones come from this repository's own runs, the others are said to be guesses."""

    steps: int = 2000
    step_s: float = 0.25
    """A guess for ViLT-B/32 at a global batch of 1,024 on a worker group: no GPU was at hand. Stages of 500 s."""
    checkpoint_every: int = 200
    checkpoint_s: float = 1.0
    """22 MB (1.8 M parameters with both moments), uploaded while the ranks wait; a guess for S3."""
    setup_s: float = 0.2
    """Measured: a further stage of a pool (README)."""
    evaluation_s: float = 20.0
    """A full pass in two views."""
    sample_s: float = 0.001
    """One sample in one view, so that a split of 10,000 takes as long as that; a guess."""
    restart_s: float = 11.0
    """Measured: workers started again in a pool after kill -9, to the next step."""
    replace_s: float = 180.0
    """A guess: a spare node joins and pulls its image."""
    head_s: float = 300.0
    """A guess: the operator builds a new cluster after the head's node died; every pool waits."""
    verify_s: float = 0.15
    """Coordinator: re-reading and hashing a 7 MB result from S3; a guess on top of the measured 1 GB/s of hashing."""


def chains(sequences: int, tasks: int, evaluate_every: int) -> Plan:
    """`sequences` chains of two stages a task, and evaluations of a task on every `evaluate_every`-th bank.

    A stage names only the stage before it as its parent: that has the whole bank behind it, so the order is the same.
    """
    task = TaskSpec("t", TaskKind.SINGLE, 10, 40, "t", "train", "val", "", "")
    jobs: dict[str, StageJob] = {}

    def add(key: str, kind: JobKind, parents: tuple[str, ...], seed: int, priority: int) -> str:
        jobs[key] = StageJob(key, kind, task, "atlas", seed, parents, priority=priority)
        return key

    for s in range(sequences):
        before: tuple[str, ...] = ()
        for t in range(tasks):
            name = f"{s:04d}{t:05d}"
            if t:
                before = (add(f"{name}a".ljust(32, "0"), JobKind.TRAIN, before, s, 0),)
            before = (add(f"{name}b".ljust(32, "0"), JobKind.TRAIN, before, s, 0),)
            add(f"{name}e".ljust(32, "0"), JobKind.EVAL, before, s, 1)
            if t % evaluate_every == evaluate_every - 1:
                for old in range(0, t, evaluate_every):
                    add(f"{name}e{old:05d}".ljust(32, "0"), JobKind.EVAL, before, s, 1)
    return Plan(jobs, (), "scale")


@dataclass
class Pooled:
    """A worker group of nodes: what it runs, until when, and since when it is up."""

    name: str
    up_at: float = 0.0
    attempt: str = ""


@dataclass
class Scale:
    """One simulated run. `go` until everything is committed or `horizon` seconds have passed."""

    plan: Plan
    pools: int
    group: int
    """Nodes of a pool."""
    node_mtbf_s: float
    costs: Costs
    rng: random.Random
    now: float = 0.0
    useful_s: float = 0.0
    busy_s: float = 0.0
    """Seconds of pools that had a job or were being mended."""
    thinking_s: float = 0.0
    """Measured processor seconds of this machine: decisions, entries, fold."""
    slowest_s: float = 0.0
    verifying_s: float = 0.0
    failures: int = 0
    bytes: int = 0
    entries: int = 0
    head: str = GENESIS
    state: RunState = field(default_factory=lambda: RunState(run="scale"))
    _events: list[tuple[float, int, str, str, int]] = field(default_factory=list)
    _number: Any = field(default_factory=itertools.count)
    _reached: dict[str, int] = field(default_factory=dict)
    """Job -> the step of its newest checkpoint."""

    def __post_init__(self) -> None:
        self.frontier = Frontier(self.plan)
        self.groups = {f"pool{i}": Pooled(f"pool{i}") for i in range(self.pools)}
        self._record([Begin("scale", "s", "p"), Elect("the run begins")])

    def go(self, horizon: float) -> None:
        """Simulate."""
        head_failure = self.rng.expovariate(1 / self.node_mtbf_s)
        self._decide()
        while self._events and self.now < horizon and not self.state.finished:
            self.now, _, what, subject, step = heapq.heappop(self._events)
            if self.now >= head_failure:
                self._lose_the_head()
                head_failure = self.now + self.rng.expovariate(1 / self.node_mtbf_s)
            began = time.process_time()
            if what == "end":
                self._end(subject, step)
            elif what == "fail" and subject in self.state.running:
                self._fail(subject, step, self.costs.restart_s + self.costs.replace_s)
            self._decide()
            spent = time.process_time() - began
            self.thinking_s += spent
            self.slowest_s = max(self.slowest_s, spent)

    def _at(self, when: float, what: str, subject: str = "", step: int = 0) -> None:
        heapq.heappush(self._events, (when, next(self._number), what, subject, step))

    def _record(self, records: list[Record]) -> None:
        entries = []
        for record in records:
            seq, epoch = self.entries, max(self.state.epoch, int(self.entries > 0))
            entry = Entry(seq, epoch, "w" * 32, "n" * 32, self.head, round(1.7e9 + self.now, 3), record)
            data = entry.to_bytes()
            self.head = sha256_hex(data)
            self.bytes += len(data)
            self.entries += 1
            entries.append(entry)
            if isinstance(record, Commit):
                self.frontier.settle(record.job)
        self.state = fold(self.state, entries)

    def _decide(self) -> None:
        free = tuple(Pool(g.name, int(not g.attempt and g.up_at <= self.now), 1) for g in self.groups.values())
        records: list[Record] = []
        for action in next_actions(self.plan, self.state, Capacity(free), 1.7e9 + self.now, frontier=self.frontier):
            match action:
                case StartJob(job, pool, reason):
                    records.append(self._start(job, pool, reason))
                case AbandonAttempt(attempt, reason):
                    records.append(Abandon(self.state.attempts[attempt], attempt, reason))
                case QuarantineJob():
                    raise AssertionError("node failures alone must never quarantine a job that makes progress")
                case _:
                    records.append(Finish("all jobs are committed"))
        if records:
            self._record(records)

    def _start(self, job: str, pool: str, reason: str) -> Dispatch:
        attempt = f"{job}-e1-{len(self.state.job(job).attempts) + 1}"
        self.groups[pool].attempt = attempt
        self._began[attempt] = self.now
        self._seat[attempt] = pool
        training = self.plan.jobs[job].kind is JobKind.TRAIN
        costs = self.costs
        left = costs.steps - self._reached.get(job, 0) if training else 0
        saves = left // costs.checkpoint_every if training else 0
        takes = costs.setup_s + (left * costs.step_s + saves * costs.checkpoint_s if training else costs.evaluation_s)
        breaks = self.rng.expovariate(self.group / self.node_mtbf_s)
        if breaks < takes:
            share = max(0.0, breaks - costs.setup_s) / (takes - costs.setup_s)
            self._at(self.now + breaks, "fail", attempt, costs.steps - left + int(left * share) if training else 0)
        else:
            self._at(self.now + takes, "end", attempt, costs.steps)
        prefix = f"runs/scale/attempts/{attempt}"
        resume = f"{prefix}/checkpoints/{self._reached[job]:08d}" if job in self._reached else ""
        return Dispatch(job, attempt, prefix, pool, reason, resume, "0" * 64 if resume else "")

    _began: dict[str, float] = field(default_factory=dict)
    _seat: dict[str, str] = field(default_factory=dict)

    def _leave(self, attempt: str, down_s: float) -> None:
        group = self.groups[self._seat[attempt]]
        self.busy_s += self.now - self._began[attempt] + down_s
        group.attempt, group.up_at = "", self.now + down_s
        if down_s:
            self._at(group.up_at, "up")

    def _end(self, attempt: str, step: int) -> None:
        if attempt not in self.state.running:
            return
        job = self.state.attempts[attempt]
        training = self.plan.jobs[job].kind is JobKind.TRAIN
        self.useful_s += self.costs.steps * self.costs.step_s if training else self.costs.evaluation_s
        self.verifying_s += self.costs.verify_s
        self._leave(attempt, 0.0)
        blobs = tuple(Blob(name, 7 << 20, "0" * 64) for name in ("adapter.safetensors", "adapter_config.json", "details.json"))
        metrics = {
            "score": 50.0,
            "loss": 1.0,
            "samples": 100_000,
            "steps": step,
            "world": 8 * self.group,
            "seconds": {"stepping": 500.0},
        }
        self._record([Commit(job, attempt, f"runs/scale/attempts/{attempt}", blobs, metrics)])

    def _fail(self, attempt: str, step: int, down_s: float) -> None:
        job = self.state.attempts[attempt]
        saved = step // self.costs.checkpoint_every * self.costs.checkpoint_every
        if saved > self._reached.get(job, 0):
            self._reached[job] = saved
        self.failures += 1
        self._leave(attempt, down_s)
        self._record([Fail(job, attempt, FailureKind.PREEMPTED, "a node went away", step)])

    def _lose_the_head(self) -> None:
        for attempt in sorted(self.state.running):
            total = self.costs.steps * self.costs.step_s
            done = int(min(1.0, (self.now - self._began[attempt]) / total) * self.costs.steps)
            self._fail(
                attempt, min(self.costs.steps - 1, self._reached.get(self.state.attempts[attempt], 0) + done), self.costs.head_s
            )


@dataclass(frozen=True)
class Case:
    """What to simulate."""

    nodes: int
    days: float
    mtbf_days: float
    group: int = 8
    tasks: int = 1000


def simulate(case: Case, costs: Costs) -> Scale:
    """Run one case: as many sequences as there are worker groups."""
    pools = max(1, case.nodes // case.group)
    plan = chains(pools, case.tasks, evaluate_every=100)
    run = Scale(plan, pools, case.group, case.mtbf_days * DAY, costs, random.Random(case.nodes))
    run.go(case.days * DAY)
    return run


def report(case: Case, run: Scale, a_job: dict[str, float], a_second: dict[str, float]) -> str:
    """One line of the table."""
    days = run.now / DAY
    effective = run.useful_s / run.busy_s
    used = run.useful_s / (run.pools * run.now)
    load = (run.thinking_s + run.verifying_s) / run.now
    rate = run.state.committed / run.now
    checkpoints = rate * run.costs.steps / run.costs.checkpoint_every * 4  # three files and DONE
    puts = rate * a_job["PUT"] + checkpoints + a_second["PUT"]
    gets = rate * a_job["GET"] + a_second["GET"]
    cost = (puts * PUT_PRICE + gets * GET_PRICE) * DAY
    cells = [
        f"{case.nodes} / {case.group}",
        f"{case.mtbf_days:g}",
        f"{days:.1f}",
        f"{run.state.committed:,} of {len(run.plan.jobs):,}",
        str(run.failures),
        f"{effective:.1%}",
        f"{used:.1%}",
        f"{load:.2%}",
        f"{1000 * run.thinking_s / max(1, run.entries):.2f} / {1000 * run.slowest_s:.0f}",
        f"{run.entries:,} / {run.bytes / 1e6:.0f} MB",
        f"{puts:.1f} + {gets:.1f}",
        f"{cost:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def growth(sizes: list[tuple[int, int]]) -> None:
    """What planning costs for (tasks, `sequence.evaluate_every`)."""
    print("\n| tasks | evaluate_every | jobs | names of parents in them | seconds to plan | peak MB |\n|---|---|---|---|---|---|")
    for tasks, every in sizes:
        began = time.process_time()
        plan = small_plan(tasks, evaluate_every=every)
        spent = time.process_time() - began
        names = sum(len(job.parents) for job in plan.jobs.values())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(f"| {tasks} | {every} | {len(plan.jobs):,} | {names:,} | {spent:.2f} | {peak:,} |")


def scoring(cases: list[tuple[int, int]], split: int, sample_s: float) -> None:
    """What the evaluations of a whole plan read, with `sequence.recheck` off and on, for (tasks, `sequence.evaluate_every`)."""
    print(f"\nsplits of {split:,} samples, {1000 * sample_s:g} ms a sample and view")
    print("| tasks | evaluate_every | evaluations | samples read, recheck=0 | recheck=256 | hours of scoring, before | after |")
    print("|---|---|---|---|---|---|---|")
    for tasks, every in cases:
        read = []
        for recheck in (0, 256):
            plan = small_plan(tasks, evaluate_every=every, split=split, recheck=recheck)
            jobs = [job for job in plan.jobs.values() if job.kind is JobKind.EVAL]
            read.append(sum(job.samples.get(view, split) for job in jobs for view in job.views))
        hours = [f"{samples * sample_s / 3600:,.1f}" for samples in read]
        print(f"| {tasks} | {every} | {len(jobs):,} | {read[0]:,} | {read[1]:,} | {hours[0]} | {hours[1]} |", flush=True)


def appending(sizes: list[int]) -> None:
    """What one more entry costs after so many (a fold copies the state's dictionaries)."""
    print("\n| jobs committed so far | ms to fold one more entry |\n|---|---|")
    for size in sizes:
        run = Scale(chains(1, size // 3 + 1, 10**9), 1, 1, 1e12, Costs(), random.Random(0))
        keys = list(itertools.islice(run.plan.jobs, size))
        records: list[Record] = []
        for key in keys:
            attempt = f"{key}-e1-1"
            records += [Dispatch(key, attempt, f"p/{attempt}", "main", "r"), Commit(key, attempt, f"p/{attempt}", (), {})]
        run._record(records)
        last = list(run.plan.jobs)[size] if len(run.plan.jobs) > size else keys[-1] + "x"
        began = time.process_time()
        run._record([Dispatch(last, f"{last}-e1-1", f"p/{last}-e1-1", "main", "r")])
        print(f"| {size:,} | {1000 * (time.process_time() - began):.1f} |")


def main() -> None:
    """Simulate, measure, print tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small cases only")
    parser.add_argument("--checkpoint-every", type=int, default=Costs.checkpoint_every)
    options = parser.parse_args()
    costs = replace(Costs(), checkpoint_every=options.checkpoint_every)
    a_job, a_second = requests_a_job(6 if options.quick else 12), requests_a_second()
    print(
        f"requests a job: {a_job['PUT']:.1f} PUT or LIST, {a_job['GET']:.1f} GET or HEAD; a second of leading: "
        f"{a_second['PUT']:.2f} and {a_second['GET']:.2f}; checkpoints every {costs.checkpoint_every} of {costs.steps} steps\n"
    )
    print(
        "| nodes / group | node MTBF, days | simulated days | jobs committed | failures | effective training time | "
        "utilisation | coordinator load | ms an entry, mean / slowest | ledger | S3 requests a second | $ a day |"
    )
    print("|" + "---|" * 12)
    cases = (
        [Case(8, 30, 30, tasks=40)]
        if options.quick
        else [
            Case(8, 30, 260),
            Case(8, 30, 1),
            Case(64, 30, 260),
            Case(64, 10, 1),
            Case(256, 3, 260),
            Case(1024, 1, 260),
            Case(1024, 1, 30),
            Case(1024, 0.5, 1),
            Case(1024, 6, 260, group=128),
            Case(1024, 6, 30, group=128),
        ]
    )
    for case in cases:
        print(report(case, simulate(case, costs), a_job, a_second), flush=True)
    growth([(10, 1), (20, 5)] if options.quick else [(25, 1), (50, 1), (100, 1), (200, 1), (200, 20), (1000, 100)])
    scoring([(20, 1)] if options.quick else [(100, 1), (200, 1), (1000, 100)], 10_000, costs.sample_s)
    appending([1_000] if options.quick else [1_000, 10_000, 100_000])


if __name__ == "__main__":
    main()
