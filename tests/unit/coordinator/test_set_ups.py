"""Workers that end before their first job: the coordinator hears why, and the run does not try for ever."""

from __future__ import annotations

from typing import Any

import pytest

from atlas_dist.coordinator import ray_worker
from atlas_dist.coordinator.set_ups import TRIES, SetUpFailures
from atlas_dist.errors import AtlasError, ConfigError


def test_it_gives_up_with_the_cause() -> None:
    failures = SetUpFailures({"main": 1})
    for _ in range(TRIES - 1):
        assert failures.failed("main", "node-3: OSError: no space left", final=False) is None
    error = failures.failed("main", "node-3: OSError: no space left", final=False)
    assert error is not None and "node-3: OSError: no space left" in str(error) and "main" in str(error)
    assert error.retry and error.exit_code == 5


def test_a_group_that_fails_alike_is_one_try() -> None:
    """Eight workers with one cause say so eight times."""
    failures = SetUpFailures({"main": 8})
    told = [failures.failed("main", f"node-{n % 8}: OSError: x", final=False) for n in range(8 * (TRIES - 1))]
    assert told == [None] * len(told)
    assert failures.failed("main", "node-0: OSError: x", final=False) is not None


def test_a_group_that_came_to_work_begins_anew() -> None:
    failures = SetUpFailures({"main": 1, "pool-2": 1})
    for _ in range(3 * TRIES):
        assert failures.failed("main", "x", final=False) is None
        assert failures.failed("pool-2", "x", final=True) is not None, "pools are counted apart"
        failures.succeeded("main")


def test_what_no_other_try_mends_ends_it_at_once() -> None:
    error = SetUpFailures({"main": 8}).failed("main", "ConfigError: no such backbone", final=True)
    assert error is not None and not error.retry


class Recorder:
    """An actor that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    @property
    def set_up_failed(self) -> Recorder:
        return self

    def remote(self, *args: Any) -> None:
        self.told.append(args)


@pytest.mark.parametrize(
    ("error", "final"),
    [(OSError("no space left"), False), (ConfigError("no such backbone"), True), (ImportError("libcuda.so.1"), False)],
)
def test_a_worker_says_why_it_could_not_begin(monkeypatch: pytest.MonkeyPatch, error: Exception, final: bool) -> None:
    """Ray starts workers again without a word: 9 restarts in two minutes, and nobody knew why."""

    def fails(_options: object) -> None:
        raise error

    actor = Recorder()
    monkeypatch.setattr(ray_worker, "_set_up", fails)
    monkeypatch.setattr(ray_worker.ray, "get", lambda value: value)
    with pytest.raises(type(error)):
        ray_worker.pool_main({"actor": actor, "pool": "main", "config": None})
    ((pool, reason, ended),) = actor.told
    assert (pool, ended) == ("main", final)
    assert str(error) in reason and type(error).__name__ in reason


def test_the_run_ends_with_the_cause_and_can_go_on() -> None:
    from atlas_dist.coordinator.service import RunService

    service = RunService.__new__(RunService)
    import threading

    service._error, service._stopping = None, threading.Event()
    first, second = AtlasError("the cause"), AtlasError("what came of it")
    service.give_up(first)
    service.give_up(second)
    assert service._error is first and service._stopping.is_set()
