"""The collector passes over what was there when it was told to, and is as it was after a pause."""

from __future__ import annotations

import gc
import weakref

import pytest

from atlas_dist import collector


class Node:
    """Refers to itself: only the collector can take it."""

    def __init__(self) -> None:
        self.itself = self


def test_what_was_garbage_goes_first_and_what_lasts_is_passed_over() -> None:
    garbage = weakref.ref(Node())
    lasts = [[n] for n in range(1000)]
    collector.freeze()
    assert garbage() is None
    assert not {id(each) for each in lasts} & {id(each) for each in gc.get_objects()}
    later = weakref.ref(Node())
    gc.collect()
    assert later() is None, "what comes later is collected as ever"


@pytest.mark.parametrize("on", [True, False])
def test_a_pause_ends_as_it_began(on: bool) -> None:
    (gc.enable if on else gc.disable)()
    try:
        with pytest.raises(KeyError), collector.paused():
            assert not gc.isenabled()
            raise KeyError
        assert gc.isenabled() is on
    finally:
        gc.enable()
