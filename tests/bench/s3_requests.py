"""How many S3 requests a job means, from the coordinator's real code on a store that counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from atlas_dist.coordinator.coordinator import Coordinator
from atlas_dist.coordinator.settings import CoordinatorSettings
from atlas_dist.store.objects import MemoryStore, ObjectInfo
from tests.chaos.fakes import FakeClock, FakeDispatcher, counted_ids
from tests.chaos.plans import small_plan


class CountingStore(MemoryStore):
    """Counts the S3 requests that calls mean."""

    def __init__(self) -> None:
        super().__init__("counted")
        self.count: Counter[str] = Counter()

    def create(self, key: str, data: bytes) -> None:
        self.count["PUT"] += 1
        super().create(key, data)

    def put(self, key: str, data: bytes) -> None:
        self.count["PUT"] += 1
        super().put(key, data)

    def get(self, key: str, *, limit: int = 1 << 31) -> bytes:
        self.count["GET"] += 1
        return super().get(key, limit=limit)

    def stat(self, key: str) -> ObjectInfo:
        self.count["GET"] += 1
        return super().stat(key)

    def read_range(self, key: str, start: int, out: memoryview, *, if_match: str = "") -> int:
        self.count["GET"] += 1
        return super().read_range(key, start, out, if_match=if_match)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self.count["PUT"] += 1  # priced alike
        return super().list(prefix)


def requests_a_job(tasks: int) -> dict[str, float]:
    """PUT-like and GET-like requests a committed job, coordinator and worker together, from the real code."""
    store, clock = CountingStore(), FakeClock()
    plan = small_plan(tasks)
    still = CoordinatorSettings(ttl_s=1e9, inbox_every_s=1e9)  # what time costs is counted apart
    coordinator = Coordinator(
        "r", plan, store, FakeDispatcher(store), ids=counted_ids(), clock=clock, log_sink=_nobody, settings=still
    )
    status = coordinator.open()
    while not status.done:
        status = coordinator.tick()
        clock.sleep(1.0)
    return {kind: number / len(plan.jobs) for kind, number in store.count.items()}


def requests_a_second() -> dict[str, float]:
    """What a leader asks while nothing happens: heartbeat and a look for rivals every ttl / 5, the inbox every other second."""
    settings = CoordinatorSettings()
    return {"PUT": 5 / settings.ttl_s + 1 / settings.inbox_every_s, "GET": 5 / settings.ttl_s}


def _nobody(_event: str, _fields: Any) -> None:
    return
