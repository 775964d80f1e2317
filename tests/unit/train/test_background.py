"""Checkpoints from a thread: one at a time, the newest of those that wait, an error told, and no step held up."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping

import pytest

from atlas_dist.errors import StoreError
from atlas_dist.train.background import BackgroundCheckpoints


class SlowStore:
    """Each write ends when the test says so."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.written: list[int] = []
        self.under_way = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)
        self.fails = False

    def write(self, step: int, files: Mapping[str, bytes]) -> None:
        assert files == {"state": b"%d" % step}
        self.begun.append(step)
        self.under_way.release()
        assert self.may_end.acquire(timeout=60)
        if self.fails:
            raise StoreError("The bucket is away.")
        self.written.append(step)


@pytest.fixture
def store() -> SlowStore:
    return SlowStore()


@pytest.fixture
def checkpoints(store: SlowStore) -> Iterator[BackgroundCheckpoints]:
    made = BackgroundCheckpoints(store.write)
    yield made
    store.may_end.release(10)
    made.close(60)


def put(checkpoints: BackgroundCheckpoints, step: int) -> None:
    checkpoints.put(step, lambda: {"state": b"%d" % step})


def test_a_step_does_not_wait_and_a_newer_checkpoint_takes_the_place_of_one_that_waits(
    store: SlowStore, checkpoints: BackgroundCheckpoints
) -> None:
    put(checkpoints, 2)
    assert store.under_way.acquire(timeout=60)
    put(checkpoints, 4)
    put(checkpoints, 6)  # all three returned while the first is being written
    assert store.begun == [2]
    store.may_end.release(2)
    assert checkpoints.settle(60) is None
    assert store.written == [2, 6]


def test_the_end_waits_for_the_last_write(store: SlowStore, checkpoints: BackgroundCheckpoints) -> None:
    put(checkpoints, 2)
    ended: list[object] = []
    end = threading.Thread(target=lambda: ended.append(checkpoints.settle()))
    end.start()
    assert store.under_way.acquire(timeout=60)
    assert not ended
    store.may_end.release()
    end.join(60)
    assert (ended, store.written) == ([None], [2])


def test_what_ends_the_writing_is_told_and_nothing_is_written_after_it(
    store: SlowStore, checkpoints: BackgroundCheckpoints
) -> None:
    store.fails = True
    put(checkpoints, 2)
    store.may_end.release()
    assert isinstance(checkpoints.settle(60), StoreError)
    assert isinstance(checkpoints.error, StoreError)
    put(checkpoints, 4)
    assert isinstance(checkpoints.settle(60), StoreError), "it does not wait for what is never written"
    assert store.begun == [2]


def test_a_stage_that_ends_by_an_error_drops_what_waits(store: SlowStore, checkpoints: BackgroundCheckpoints) -> None:
    put(checkpoints, 2)
    assert store.under_way.acquire(timeout=60)
    put(checkpoints, 4)
    store.may_end.release(2)
    checkpoints.close(60)
    assert store.written == [2]


def test_nothing_put_means_nothing_to_wait_for(store: SlowStore, checkpoints: BackgroundCheckpoints) -> None:
    assert checkpoints.settle(60) is None
