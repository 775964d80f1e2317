"""Seeds of random draws: each depends on what it is for, and on nothing else."""

from __future__ import annotations

from hashlib import blake2b

from atlas_dist.core.types import StageJob


def seed_of(job: StageJob, purpose: str) -> int:
    """A seed that depends on the run's seed, the task, the stage and the purpose; not on the order of tasks, so that the same
    task starts from the same draw wherever it stands in a sequence."""
    stage = job.stage.stage.value if job.stage else job.kind.value
    return seed_from(job.seed, job.task.name, stage, purpose)


def seed_from(*parts: object) -> int:
    """A seed of 63 bits from what it shall depend on."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
