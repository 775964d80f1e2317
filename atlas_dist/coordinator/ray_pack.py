"""Packing on a Ray cluster: the shards of a split, each a task of its own, on every core there is.

`data/pack.py` asks for a function that maps work over jobs; this is one. A shard that an earlier, killed pack had finished is
recognised where it would be made (its note lies in the store), so nothing here remembers anything.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import ray
from ray.exceptions import RayTaskError

from atlas_dist.config import RunConfig
from atlas_dist.coordinator.ray_cluster import cluster
from atlas_dist.data.pack import MapFn, ShardDone, ShardJob
from atlas_dist.errors import AtlasError

AHEAD = 4
"""Jobs handed out for each core: none waits for work, and a split of millions is not sent out at once."""


@contextmanager
def packers(config: RunConfig) -> Iterator[MapFn]:
    """Joins the configured Ray (or starts one), and gives the mapping; ends what it started.

    Raises:
        ConfigError: the cluster cannot be reached.
    """
    with cluster(config.cluster, ()):
        yield _map


def _map(work: Callable[[ShardJob], ShardDone], jobs: Iterable[ShardJob]) -> Iterator[ShardDone]:
    """Results in the order of the jobs. A job whose node was lost is done again; an error of a job is raised as it was there."""
    task = ray.remote(num_cpus=1, max_retries=3)(_do)
    shared, left = ray.put(work), iter(jobs)
    window = max(1, int(AHEAD * ray.cluster_resources().get("CPU", 1)))
    under_way: deque[Any] = deque(task.remote(shared, job) for job in islice(left, window))
    try:
        while under_way:
            done: ShardDone = ray.get(under_way.popleft())
            under_way.extend(task.remote(shared, job) for job in islice(left, 1))
            yield done
    except RayTaskError as error:
        cause = error.cause
        raise (cause if isinstance(cause, AtlasError) else error) from None
    finally:
        for job in under_way:
            ray.cancel(job)


def _do(work: Callable[[ShardJob], ShardDone], job: ShardJob) -> ShardDone:
    return work(job)
