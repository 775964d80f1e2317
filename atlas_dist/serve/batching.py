"""Samples that come one by one, answered in batches: whoever waits when the model is free goes together.

Ray Serve's own `serve.batch` closes the next batch while the one before is still at work, after its few milliseconds of waiting;
on a busy model its batches stay small (16 clients: 2 samples, where this has 12). Here a batch is closed when it can start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Asked = TypeVar("Asked")
Answered = TypeVar("Answered")


class Batcher(Generic[Asked, Answered]):
    """One batch at a time. It belongs to one event loop.

    Args:
        answer: takes 1 to `most` samples, returns as many answers in their order.
        most: samples of a batch.
        wait_s: seconds that the first sample of a batch waits for others, counted from when it came; not at all where it has
            waited longer for the model.
    """

    def __init__(self, answer: Callable[[list[Asked]], Awaitable[Sequence[Answered]]], *, most: int, wait_s: float) -> None:
        self._answer, self._most, self._wait_s = answer, most, wait_s
        self._queue: asyncio.Queue[tuple[Asked, asyncio.Future[Answered], float]] = asyncio.Queue()
        self._worker: asyncio.Task[None] | None = None

    async def ask(self, sample: Asked) -> Answered:
        """The sample's answer. Raises what `answer` raises."""
        loop = asyncio.get_running_loop()
        if self._worker is None:
            self._worker = loop.create_task(self._work())
        future: asyncio.Future[Answered] = loop.create_future()
        self._queue.put_nowait((sample, future, loop.time()))
        return await future

    async def _work(self) -> None:
        while True:
            batch = [(sample, future) for sample, future in await self._collected() if not future.done()]  # gone: nobody waits
            if not batch:
                continue
            try:
                answers = await self._answer([sample for sample, _ in batch])
                for (_, future), answer in zip(batch, answers, strict=True):
                    if not future.done():
                        future.set_result(answer)
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)

    async def _collected(self) -> list[tuple[Asked, asyncio.Future[Answered]]]:
        sample, future, came = await self._queue.get()
        batch, until = [(sample, future)], came + self._wait_s
        while len(batch) < self._most:
            left = until - asyncio.get_running_loop().time()
            try:
                got = self._queue.get_nowait() if left <= 0 else await asyncio.wait_for(self._queue.get(), left)
            except (asyncio.QueueEmpty, TimeoutError):
                break
            batch.append(got[:2])
        return batch
