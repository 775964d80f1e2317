"""Does an interrupted run really end with the same bank? Try it, with kill -9 at random points.

One run is left alone. A second one, in a store of its own, loses processes: a worker, Ray Train's controller, the coordinator,
the driver. Afterwards every file of every committed job must have the same hash.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import mkdtemp

from atlas_dist.app.child import Part, RunProcess, kill
from atlas_dist.app.composed import Settings, words_of
from atlas_dist.compose import compose_config
from atlas_dist.core.records import Commit
from atlas_dist.errors import TrainingError
from atlas_dist.runs.status import load_run
from atlas_dist.runs.stores import open_run_store

_VICTIMS = (Part.WORKER, Part.WORKER, Part.DRIVER, Part.CONTROLLER, Part.COORDINATOR)
_STARTS = 20


@dataclass(frozen=True)
class Blow:
    """One process that was killed, and the job that was under way."""

    part: Part
    job: str


def verify_resume(*settings: Settings, kills: int = 3, seed: int = 0, tell: Callable[[float | Blow], None]) -> tuple[Blow, ...]:
    """Compare an undisturbed run with one that loses `kills` processes.

    Args:
        settings: as for `run`. seed: of the choice of processes and moments.
        tell: hears the seconds that the undisturbed run took, then each blow as it falls.

    Returns:
        Every blow; the two banks are equal.

    Raises:
        TrainingError: a file differs, a job was committed twice, or a run did not complete.
    """
    words = words_of(*settings)
    compose_config(words)
    folder = Path(mkdtemp(prefix="atlas-verify-"))
    calm = [*words, f"store.url={folder}/calm", f"report={folder}/calm-report"]
    stormy = [*words, f"store.url={folder}/stormy", f"report={folder}/stormy-report"]
    began = time.monotonic()
    run = RunProcess(calm, folder / "calm.txt")
    if run.finish() != 0:
        raise TrainingError(f"The undisturbed run failed:\n{run.text()[-2000:]}")
    tell(time.monotonic() - began)
    blows = _storm(stormy, folder, kills, Random(seed), tell)
    differing, twice = _compare(calm, stormy)
    if differing or twice:
        raise TrainingError(f"Not the same bank: {len(differing)} files differ ({differing[:5]}), committed twice: {twice[:5]}.")
    return tuple(blows)


def _storm(words: list[str], folder: Path, kills: int, draw: Random, tell: Callable[[Blow], None]) -> list[Blow]:
    """Start the run as often as it takes; kill while kills are left, each some steps into a training job."""
    blows: list[Blow] = []
    for start in range(_STARTS):
        run = RunProcess(words, folder / f"stormy-{start}.txt")
        try:
            while run.process.poll() is None and len(blows) < kills:
                victim = draw.choice(_VICTIMS)
                blow = _strike(run, victim, draw)
                if blow:
                    blows.append(blow)
                    tell(blow)
            code = run.finish()
        finally:
            run.sweep()
        if code == 0:
            return blows
    raise TrainingError(f"The disturbed run did not complete in {_STARTS} starts:\n{run.text()[-2000:]}")


def _strike(run: RunProcess, part: Part, draw: Random) -> Blow | None:
    """Wait until a job has been dispatched since the last look, a moment longer, then kill; None when the run ended first."""
    seen = run.text().count("] dispatch ")
    while run.text().count("] dispatch ") == seen:
        if run.process.poll() is not None:
            return None
        time.sleep(0.05)
    time.sleep(draw.uniform(0.0, 1.0))
    found = run.parts(part)
    if not found:
        return None
    job = run.text().rpartition("] dispatch ")[2].partition("\n")[0]
    kill(draw.choice(found))
    return Blow(part, job)


def _compare(calm: list[str], stormy: list[str]) -> tuple[list[str], list[str]]:
    """Files that differ, and jobs that were committed more than once."""
    banks = []
    twice: list[str] = []
    for words in (calm, stormy):
        config = compose_config(words)
        state, entries = load_run(open_run_store(config), config.run)
        commits = [e.record.job for e in entries if isinstance(e.record, Commit)]
        twice += sorted({job for job in commits if commits.count(job) > 1})
        refs = [job.committed for job in state.jobs.values() if job.committed]
        banks.append({(ref.job, blob.name): blob.sha256 for ref in refs for blob in ref.blobs})
    keys = banks[0].keys() | banks[1].keys()
    return [f"{job[:12]}/{name}" for job, name in sorted(keys) if banks[0].get((job, name)) != banks[1].get((job, name))], twice
