"""Recorded histories and the decisions they led to: `python -m tests.chaos.golden` writes new ones (never over old ones).

A golden file holds the plan as it was, a ledger's raw entries, and what was decided after each. Reading a ledger of an old run
must give the same decisions for ever: a run of days may be continued by a newer version.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from atlas_dist.core.keys import plain
from atlas_dist.core.ledger import Entry, apply
from atlas_dist.core.plan import Plan, SequenceJobs
from atlas_dist.core.schedule import Capacity, Pool, next_actions
from atlas_dist.core.state import RunState
from atlas_dist.core.task_jobs import TaskJobs
from atlas_dist.core.types import JobKind, StageJob, TaskKind, TaskSpec
from tests.chaos import sim
from tests.chaos.world import World

FOLDER = Path(__file__).parent / "golden"
CAPACITY = Capacity((Pool("main", 2, 2),))
SEEDS = (0, 2, 4, 9, 162, 1567)
"""Chosen for what happens in them: takeovers, failures of several kinds, pauses, halts, garbage."""


def record(seed: int) -> dict[str, Any]:
    """Live through a seed and write down run `a`."""
    worlds: list[World] = []
    sim.simulate(seed, worlds.append)
    objects = worlds[0].objects
    entries = [objects[key].decode() for key in sorted(objects) if key.startswith("runs/a/ledger/")]
    plan = sim.scenario(seed).plan
    return {"seed": seed, "plan": _plan_json(plan), "entries": entries, "decisions": decisions(plan, entries)}


def decisions(plan: Plan, entries: list[str]) -> list[list[Any]]:
    """What is decided after each entry."""
    state, decided = RunState(), []
    for text in entries:
        entry = Entry.from_bytes(text.encode())
        state = apply(state, entry)
        actions = next_actions(plan, state, CAPACITY, entry.at + 1.0)
        decided.append([[type(a).__name__, plain(a)] for a in actions])
    return decided


def _plan_json(plan: Plan) -> dict[str, Any]:
    jobs = [{"key": j.key, "kind": j.kind.value, "parents": j.parents, "priority": j.priority} for j in plan.jobs.values()]
    return {"jobs": jobs, "sequences": [[list(t.stages) for t in s.upstream] for s in plan.sequences]}


def plan_of(raw: dict[str, Any]) -> Plan:
    """The plan as far as scheduling looks at it; built by hand, so that golden files don't depend on how plans are made."""
    task = TaskSpec("t", TaskKind.SINGLE, 2, 8, "t", "train", "val", "", "")
    jobs = {
        j["key"]: StageJob(j["key"], JobKind(j["kind"]), task, "m", 0, tuple(j["parents"]), priority=j["priority"])
        for j in raw["jobs"]
    }
    sequences = tuple(
        SequenceJobs(f"s{i}", "m", 0, tuple(TaskJobs("t", tuple(stages), ()) for stages in upstream), (), {}, {})
        for i, upstream in enumerate(raw["sequences"])
    )
    return Plan(jobs, sequences, "golden")


def main() -> None:
    """Record what is not recorded yet."""
    FOLDER.mkdir(exist_ok=True)
    for seed in SEEDS:
        path = FOLDER / f"seed{seed:04d}.json"
        if not path.exists():
            path.write_text(json.dumps(record(seed), indent=0) + "\n")
            print(f"wrote {path}")


if __name__ == "__main__":
    main()
