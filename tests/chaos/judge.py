"""The same judge as the simulation's, for a real store after real processes have died on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from atlas_dist.store.objects import ObjectStore
from tests.chaos.checker import Checker


def objects_of(store: ObjectStore) -> dict[str, bytes]:
    """Everything in the store."""
    return {info.key: store.get(info.key) for info in store.list("")}


def ledger_of(objects: Mapping[str, bytes], run: str) -> dict[str, bytes]:
    """The run's entries."""
    return {key: data for key, data in objects.items() if key.startswith(f"runs/{run}/ledger/")}


def judge(store: ObjectStore, runs: Mapping[str, int], acknowledged: Iterable[tuple[str, str, str]] = ()) -> Checker:
    """Hold the store's final state to every invariant that can be judged from it. `runs`: run -> jobs. Raises Violation."""
    objects = objects_of(store)
    checker = Checker()
    for key in sorted(objects):
        if "/ledger/" in key:
            checker.changed("create", key, None, objects[key], objects)
    for key in sorted(objects):
        if key.startswith("results/"):
            checker.changed("create", key, None, objects[key], objects)
    checker.acknowledged += acknowledged
    checker.finished(objects, runs)
    return checker
