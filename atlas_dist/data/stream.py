"""Shards to batches: a `webdataset.DataPipeline` of stages (plan, locate, collate), one process a rank, read ahead by one thread.

    plan     sampling.py: step -> ordinals of this rank's slots
    locate   fetch.py, tarwalk.py: ordinals -> the members of samples, as views into shards in memory
    collate  collate.py, decode.py: members -> RankBatch, pixels decoded in a thread pool into a reused uint8 batch

What is random is decided in the first stage alone, by arithmetic; the rest does the same work in any process. So a resumed stream
yields bitwise equal batches.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import webdataset

from atlas_dist.core.manifest import ShardManifest
from atlas_dist.core.sampling import (
    Ordinals,
    Sampler,
    sampler_for,
    slots,
    validation_at,
    validation_steps,
    validation_valid,
)
from atlas_dist.core.types import Resample, TaskSpec
from atlas_dist.data.batch import RankBatch, StreamLimits, StreamStats
from atlas_dist.data.cache import NodeCache
from atlas_dist.data.collate import Collator, Located, StepPlan
from atlas_dist.data.decode import AnswerEncoder, ConversationPrompt, TextEncoder
from atlas_dist.data.fetch import Cancelled, PartFetcher, ShardPool, wanted_shards
from atlas_dist.errors import ConfigError, DataError
from atlas_dist.pulse import Doing, pulse
from atlas_dist.store.objects import ObjectStore


class Stream:
    """One rank's view of one split; made by `open_stream`. A context manager. One iteration at a time: a new one ends the one
    before."""

    def __init__(
        self,
        fetcher: PartFetcher,
        pool: ShardPool,
        manifest: ShardManifest,
        samplers: tuple[Sampler, Sampler],
        collator: Collator,
        *,
        rank: int,
        world: int,
        limits: StreamLimits,
        stop: threading.Event,
    ) -> None:
        self._fetcher, self._pool, self._manifest = fetcher, pool, manifest
        # Planning caches the block it is in: prefetch, which runs ahead in other threads, has a sampler of its own.
        self._sampler, self._prefetch_sampler = samplers
        self._collator = collator
        self._rank, self._world = rank, world
        self._limits = limits
        self._stop = stop
        self._ahead: _Ahead | None = None
        self._first = np.r_[0, np.cumsum(manifest.counts)]
        self._waited = 0.0
        self.steps_per_epoch = self._sampler.steps_per_epoch
        self.samples_per_epoch = self._sampler.samples

    def epochs_from(self, start_step: int, stop_step: int) -> Iterator[RankBatch]:
        """Batches of the absolute optimizer steps [start_step, stop_step), crossing epochs.

        Raises DataError, StoreError, AuthError at the batch that cannot be made.
        """
        if start_step >= stop_step:
            return iter(())
        wanted, block = self._wanted(start_step, stop_step)
        return self._run(partial(self._training_plans, start_step, stop_step), wanted, block)

    def compressed(self, start_step: int, stop_step: int) -> Iterator[Located]:
        """As `epochs_from`, but ends at the samples' members as they are stored: for benchmarks, and for looking at data.

        They are views of shards in memory: use each step's before drawing the next.
        """
        self._end_iteration()
        wanted, block = self._wanted(start_step, stop_step)
        self._pool.follow(wanted, block)
        return iter(webdataset.DataPipeline(partial(self._training_plans, start_step, stop_step), self._locate))

    def validation(self) -> Iterator[RankBatch]:
        """Every sample that an epoch visits exactly once over all ranks, in manifest order, with the same number of batches on
        every rank."""
        plans = [self._validation_plan(step) for step in range(self.validation_steps)]
        shards: dict[int, None] = {}
        for plan in plans:
            shards.update(dict.fromkeys(self._shards_of(plan.ordinals)))
        # A shard is a block here: each is used in one run and may go when the next begins.
        wanted = ((shard, shard) for shard in shards)
        return self._run(lambda: iter(plans), wanted, next(iter(shards), 0))

    @property
    def ordinals(self) -> Ordinals:
        """The samples that an epoch visits, as ordinals in the manifest, ascending."""
        return self._sampler.ordinals

    @property
    def validation_steps(self) -> int:
        """Batches of a validation, on every rank."""
        return validation_steps(self._sampler.samples, self._sampler.global_batch, self._world)

    def stats(self) -> StreamStats:
        """What was read so far."""
        counts = self._fetcher.counts
        split = f"{self._manifest.dataset}/{self._manifest.split}"
        bad = tuple(replace(sample, split=split) for sample in self._collator.bad.values())
        return StreamStats(counts.bytes, self._collator.delivered, counts.retries, self._waited, bad)

    def close(self) -> None:
        """End every thread of the stream and free its memory; safe to call twice."""
        self._stop.set()
        self._end_iteration()
        self._pool.close()
        self._collator.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _wanted(self, start: int, stop: int) -> tuple[Iterator[tuple[int, int]], int]:
        """What to prefetch for the steps [start, stop), and the block they begin in."""
        sampler = self._prefetch_sampler

        def shards(block: int) -> list[int]:
            return sampler.rank_shards(block, self._rank, self._world, start)

        first, last = sampler.block_of(start), sampler.block_of(stop - 1)
        return wanted_shards(shards, first, last + 1), first

    def _training_plans(self, start: int, stop: int) -> Iterator[StepPlan]:
        s = self._sampler
        for step in range(start, stop):
            ordinals = s.rank_at(step, self._rank, self._world)
            yield StepPlan(step, s.epoch_of(step), s.block_of(step), s.valid_at(step), ordinals)

    def _validation_plan(self, step: int) -> StepPlan:
        samples, batch = self._sampler.samples, self._sampler.global_batch
        places = validation_at(samples, batch, step, self._rank, self._world)
        ordinals = self._sampler.visited(places)
        shards = self._shards_of(ordinals)
        valid = validation_valid(samples, batch, step, self._world)
        return StepPlan(step, 0, shards[0] if shards else len(self._manifest.shards), valid, ordinals)

    def _shards_of(self, ordinals: Ordinals) -> list[int]:
        found = self._sampler.shards_of(ordinals[ordinals >= 0])
        return list(dict.fromkeys(int(s) for s in found))

    def _run(self, plans: Callable[[], Iterator[StepPlan]], wanted: Iterator[tuple[int, int]], block: int) -> Iterator[RankBatch]:
        if self._stop.is_set():
            raise DataError("The stream is closed.", fix="Open a new one.")
        self._end_iteration()
        self._pool.follow(wanted, block)
        pipeline = webdataset.DataPipeline(plans, self._locate, self._collator)
        self._ahead = ahead = _Ahead(pipeline, self._limits.batches_ahead)
        return self._deliver(ahead)

    def _deliver(self, ahead: _Ahead) -> Iterator[RankBatch]:
        try:
            while True:
                begin = time.perf_counter()
                with pulse.waiting(Doing.DATA):
                    batch = ahead.next()
                self._waited += time.perf_counter() - begin
                if batch is None:
                    return
                pulse.mark()
                yield batch
        finally:
            if self._ahead is ahead:
                self._end_iteration()

    def _end_iteration(self) -> None:
        if self._ahead is not None:
            self._pool.cancel()
            self._ahead.end()
            self._ahead = None

    def _locate(self, plans: Iterable[StepPlan]) -> Iterator[Located]:
        # A step's views are used until the next step has been located (see Collator): only then may its shards go.
        done: int | None = None
        for plan in plans:
            if done is not None:
                self._pool.advance(done)
            done = plan.block
            files: list[dict[str, memoryview] | None] = [None] * len(plan.ordinals)
            names = [("", "")] * len(plan.ordinals)
            taken = np.flatnonzero(plan.ordinals >= 0)
            numbers = self._sampler.shards_of(plan.ordinals[taken])
            inner = plan.ordinals[taken] - self._first[numbers]
            shards = {number: self._pool.get(number, plan.block) for number in dict.fromkeys(numbers.tolist())}
            for slot, number, at in zip(taken.tolist(), numbers.tolist(), inner.tolist(), strict=True):
                shard = shards[number]
                files[slot] = shard.samples.content(at, shard.data)
                names[slot] = (self._manifest.shards[number].name, shard.samples.keys[at])
            yield Located(plan, files, names)


class _Ahead:
    """Runs a pipeline in a thread, a few batches ahead of its consumer."""

    def __init__(self, pipeline: Iterable[RankBatch], depth: int) -> None:
        self._queue: queue.Queue[RankBatch | BaseException | None] = queue.Queue(max(1, depth))
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(pipeline,), name="atlas-stream", daemon=True)
        self._thread.start()

    def next(self) -> RankBatch | None:
        """The next batch; None at the end. Raises what the pipeline raised."""
        if self._ended.is_set():
            return None
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def end(self) -> None:
        """Stop the thread. Whoever it waits for (the shard pool) must have been cancelled before."""
        self._ended.set()
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.02)  # make room for a `put` that waits
            except queue.Empty:
                continue
        self._thread.join()

    def _work(self, pipeline: Iterable[RankBatch]) -> None:
        try:
            for batch in pipeline:
                self._queue.put(batch)
                if self._ended.is_set():
                    return
            self._queue.put(None)
        except Cancelled:
            self._queue.put(None)
        except BaseException as error:
            self._queue.put(error)


def open_stream(
    store: ObjectStore,
    manifest: ShardManifest,
    task: TaskSpec,
    tokenizer: Any,
    image_size: int,
    *,
    seed: int,
    rank: int,
    world: int,
    global_batch: int,
    start_step: int = 0,
    shuffle: bool = True,
    only: Sequence[int] | Ordinals | None = None,
    padded_text: int = 0,
    resample: Resample = Resample.BICUBIC,
    encode_answers: AnswerEncoder | None = None,
    asked: ConversationPrompt | None = None,
    limits: StreamLimits | None = None,
) -> Stream:
    """Open one rank's stream of one split. Nothing is fetched before the first iteration.

    Args:
        manifest: of the split (`read_manifest`).
        task: its kind and classes must be the manifest's.
        tokenizer: a fast tokenizer (transformers or tokenizers).
        image_size: side H = W of the pixels, whatever size is stored.
        rank, world: this rank and how many there are; they change only which slots of a global batch are read.
        only: ordinals to visit, such as those of a low-shot choice or of a replay reservoir; None = all.
        padded_text: tokens that texts are padded to; 0 = as many as the task's have at most.
        resample: how pictures of another size become `image_size`.
        encode_answers: of a task whose answers are written.
        asked: of the same, how questions stand behind the turns before them.

    Raises:
        DataError: the manifest does not fit the task, or holds no sample.
        ConfigError: a number out of range.
    """
    limits = limits or StreamLimits()
    _check_fit(manifest, task)
    if not 0 <= rank < world or image_size < 1:
        raise ConfigError(f"rank {rank} of {world}, image size {image_size} cannot be.")

    def sampler() -> Sampler:
        return sampler_for(manifest, seed=seed, global_batch=global_batch, shuffle=shuffle, only=only, lanes=limits.lanes)

    stop = threading.Event()
    cache = NodeCache(Path(limits.cache_dir), limits.cache_bytes) if limits.cache_dir else None
    fetcher = PartFetcher(store, manifest, limits.tries, stop, cache)
    pool = ShardPool(manifest, fetcher, budget=limits.memory_bytes, threads=limits.fetch_threads)
    collator = Collator(
        task,
        TextEncoder(tokenizer, task.max_text, padded_text),
        slots=slots(global_batch, world),
        images=manifest.images,
        size=image_size,
        limits=limits,
        resample=resample,
        encode_answers=encode_answers,
        asked=asked,
    )
    samplers = (sampler(), sampler())
    return Stream(fetcher, pool, manifest, samplers, collator, rank=rank, world=world, limits=limits, stop=stop)


def _check_fit(manifest: ShardManifest, task: TaskSpec) -> None:
    where = f"{manifest.dataset}/{manifest.split}"
    if manifest.kind is not task.kind:
        raise DataError(
            f"Task {task.name} is of kind {task.kind}, its shards {where} hold {manifest.kind}.", fix="Correct the task."
        )
    if manifest.classes and len(manifest.classes) != task.classes:
        raise DataError(
            f"Task {task.name} has {task.classes} classes, its shards {where} have {len(manifest.classes)}.",
            fix="Correct the task.",
        )
    if manifest.images not in (0, task.images):
        raise DataError(f"Task {task.name} needs {task.images} images a sample, {where} has {manifest.images}.")
