"""Curves in the store: what was told is there once, in order, whatever the store did in between."""

from __future__ import annotations

import pytest

from atlas_dist.errors import DataError, StoreError, UnknownOutcome
from atlas_dist.store.curves import TRAIN, VALIDATION, CurveReader, CurveWriter, Point, decode, due_after_s, encode, history
from atlas_dist.store.objects import MemoryStore
from tests.chaos.fakes import FakeClock

A = "runs/r/attempts/a"


def told(store: MemoryStore, prefix: str = A) -> list[tuple[str, int]]:
    return [(p.split, p.step) for p in CurveReader(store).points(prefix)]


def test_points_are_written_when_due_and_at_a_flush() -> None:
    store, clock = MemoryStore(), FakeClock()
    pen = CurveWriter(store, A, 5.0, clock=clock)
    pen.add(TRAIN, 1, {"loss": 2.0})
    assert told(store) == []
    clock.sleep(6.0)
    pen.add(TRAIN, 2, {"loss": 1.5})
    assert told(store) == [("train", 1), ("train", 2)]
    pen.add(VALIDATION, 2, {"score": 50.0})
    pen.flush()
    pen.flush()
    assert [(p.step, p.values) for p in CurveReader(store).points(A)] == [
        (1, {"loss": 2.0}),
        (2, {"loss": 1.5}),
        (2, {"score": 50.0}),
    ]
    assert len(list(store.list(A))) == 2, "nothing new, no object"


def test_a_long_stage_is_written_less_often() -> None:
    assert [due_after_s(age, 5.0) for age in (0.0, 60.0, 600.0, 86400.0)] == [5.0, 6.0, 60.0, 120.0]
    assert due_after_s(86400.0, 300.0) == 300.0
    store, clock = MemoryStore(), FakeClock()
    pen = CurveWriter(store, A, 5.0, clock=clock)
    for second in range(3600):
        clock.sleep(1.0)
        pen.add(TRAIN, second, {})
    assert 30 < len(list(store.list(A))) < 70


@pytest.mark.parametrize("applied", [True, False])
def test_a_lost_answer_neither_loses_nor_doubles_a_point(applied: bool) -> None:
    class Losing(MemoryStore):
        lose = True

        def create(self, key: str, data: bytes) -> None:
            if applied or not self.lose:
                super().create(key, data)
            if self.lose:
                self.lose = False
                raise UnknownOutcome("no answer")

    store = Losing()
    pen = CurveWriter(store, A, 5.0, clock=FakeClock())
    pen.add(TRAIN, 1, {})
    pen.flush()
    pen.add(TRAIN, 2, {})
    pen.flush()
    assert told(store) == [("train", 1), ("train", 2)]


def test_a_store_in_trouble_does_not_stop_a_stage() -> None:
    class Down(MemoryStore):
        def create(self, key: str, data: bytes) -> None:
            raise StoreError("away")

    pen = CurveWriter(Down(), A, 0.1, clock=FakeClock())
    for step in range(5):
        pen.add(TRAIN, step, {})
        pen.flush()


def test_who_goes_on_from_a_checkpoint_inherits_the_points_up_to_it() -> None:
    store = MemoryStore()
    first = CurveWriter(store, A, 5.0, clock=FakeClock())
    for step in (2, 4, 6):
        first.add(TRAIN, step, {"loss": 1.0 / step})
    first.flush()
    second = CurveWriter(store, "runs/r/attempts/b", 5.0, history=history(store, f"{A}/checkpoints/00000004"), clock=FakeClock())
    second.add(TRAIN, 6, {"loss": 0.1})
    second.flush()
    assert told(store, "runs/r/attempts/b") == [("train", 2), ("train", 4), ("train", 6)]


def test_a_reader_asks_only_for_what_is_new() -> None:
    class Counting(MemoryStore):
        gets = 0

        def get(self, key: str, *, limit: int = 1 << 31) -> bytes:
            self.gets += 1
            return super().get(key, limit=limit)

    store = Counting()
    pen, reader = CurveWriter(store, A, 5.0, clock=FakeClock()), CurveReader(store)
    for step in range(3):
        pen.add(TRAIN, step, {})
        pen.flush()
        assert len(reader.points(A)) == step + 1
    reader.points(A, whole=True)
    reader.points(A)
    assert store.gets == 3


def test_a_line_is_what_it_says_and_what_is_not_finite_is_left_out() -> None:
    point = Point(TRAIN, 40, 1234.5678, {"loss": 0.25, "score": float("nan")})
    assert encode([point]) == b'{"at":1234.568,"loss":0.25,"split":"train","step":40}\n'
    assert decode(encode([point]), "k") == [Point(TRAIN, 40, 1234.568, {"loss": 0.25})]


@pytest.mark.parametrize(
    "data", [b"x", b"[]", b"{}", b'{"split":"train","step":1,"at":0,"loss":"high"}', b'{"split":"t","step":null,"at":0}']
)
def test_what_is_no_curve_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(DataError, match="thekey"):
        decode(data, "thekey")
