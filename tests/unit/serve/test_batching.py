"""Batches: who waits goes together, each gets its own answer, and neither an error nor a client that left stops the others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from atlas_dist.serve.batching import Batcher


class Model:
    """Doubles numbers, when it is let."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []
        self.free = asyncio.Event()

    async def answer(self, numbers: list[int]) -> Sequence[int]:
        self.seen.append(numbers)
        await self.free.wait()
        if 13 in numbers:
            raise ValueError("13")
        return [2 * number for number in numbers]


def test_who_comes_while_the_model_works_goes_together_next() -> None:
    async def story() -> None:
        model = Model()
        batcher: Batcher[int, int] = Batcher(model.answer, most=4, wait_s=0.0)
        first = asyncio.create_task(batcher.ask(0))
        while not model.seen:
            await asyncio.sleep(0)
        later = [asyncio.create_task(batcher.ask(number)) for number in range(1, 7)]
        await asyncio.sleep(0)
        model.free.set()
        assert await asyncio.gather(first, *later) == [0, 2, 4, 6, 8, 10, 12]
        assert model.seen == [[0], [1, 2, 3, 4], [5, 6]]

    asyncio.run(story())


def test_the_first_waits_for_others() -> None:
    async def story() -> None:
        model = Model()
        model.free.set()
        batcher: Batcher[int, int] = Batcher(model.answer, most=2, wait_s=60.0)
        assert await asyncio.gather(batcher.ask(1), batcher.ask(2)) == [2, 4]
        assert model.seen == [[1, 2]], "a full batch starts at once"

    asyncio.run(story())


def test_an_error_is_its_batchs_and_the_next_one_is_answered() -> None:
    async def story() -> None:
        model = Model()
        model.free.set()
        batcher: Batcher[int, int] = Batcher(model.answer, most=1, wait_s=0.0)
        with pytest.raises(ValueError, match="13"):
            await batcher.ask(13)
        assert await batcher.ask(4) == 8

    asyncio.run(story())


def test_a_client_that_left_is_not_asked_for() -> None:
    async def story() -> None:
        model = Model()
        batcher: Batcher[int, int] = Batcher(model.answer, most=4, wait_s=0.0)
        first = asyncio.create_task(batcher.ask(0))
        while not model.seen:
            await asyncio.sleep(0)
        gone, stays = asyncio.create_task(batcher.ask(1)), asyncio.create_task(batcher.ask(2))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        model.free.set()
        assert await asyncio.gather(first, stays) == [0, 4]
        assert model.seen == [[0], [2]]

    asyncio.run(story())
