"""The stream, over a store in memory: exact batches, resumption, bad samples, memory and threads."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from atlas_dist.core import sampling
from atlas_dist.core.manifest import ShardManifest
from atlas_dist.core.sampling import select_shots
from atlas_dist.core.types import NO_TOKEN, TaskKind
from atlas_dist.data import collate
from atlas_dist.data.batch import RankBatch, StreamLimits
from atlas_dist.data.decode import MEAN_COLOUR, AnswerEncoder, decode_into
from atlas_dist.data.inspect import run_index
from atlas_dist.data.stream import Stream, open_stream
from atlas_dist.errors import AuthError, ConfigError, DataError, MissingObject, PreconditionFailed
from atlas_dist.store.objects import MemoryStore
from tests.kits.data import letter_tokenizer, memory_store, pack_toy, task_of


def opened(store: MemoryStore, manifest: ShardManifest, rank: int = 0, world: int = 1, **more: object) -> Stream:
    how = {"seed": 5, "global_batch": 8, **more}
    return open_stream(store, manifest, task_of(manifest), letter_tokenizer(), 16, rank=rank, world=world, **how)  # type: ignore[arg-type]


def copied(batch: RankBatch) -> dict[str, torch.Tensor]:
    """The tensors of a batch, pixels copied out of their reused buffer."""
    return {k: v.clone() for k, v in vars(batch).items() if isinstance(v, torch.Tensor)}


def slots(batches: list[dict[str, torch.Tensor]]) -> list[int]:
    return [int(i) for b in batches for i in b["index"] if i >= 0]


@pytest.fixture(scope="module")
def toy() -> tuple[MemoryStore, ShardManifest]:
    store = memory_store()
    return store, pack_toy(store, "truth", 60)


@pytest.mark.parametrize(
    ("task", "texts", "images", "soft"),
    [("shape", 1, 1, 0), ("truth", 1, 1, 0), ("kin", 3, 1, 0), ("pair", 1, 2, 0), ("ask", 1, 1, 7)],
)
def test_every_kind_has_its_shapes(task, texts, images, soft):
    store = memory_store()
    manifest = pack_toy(store, task, 12)
    with opened(store, manifest) as stream:
        batches = [copied(b) for b in stream.epochs_from(0, stream.steps_per_epoch)]
    for batch in batches:
        assert batch["input_ids"].shape == batch["attention_mask"].shape == batch["token_type_ids"].shape == (8, texts, 24)
        assert batch["pixels"].shape == (8, images, 16, 16, 3) and batch["pixels"].dtype == torch.uint8
        assert batch["mask"].dtype == torch.bool and (batch["input_ids"][:, :, 0] == 2).all()
        if soft:
            assert batch["targets"].shape == (8, soft) and (batch["targets"].max(1).values == batch["mask"].float()).all()
        else:
            assert batch["labels"].shape == (8,) and batch["labels"].dtype == torch.int64
    assert batches[-1]["mask"].tolist() == [True] * 4 + [False] * 4
    assert sorted(slots(batches)) == list(range(12))


def test_answers_that_are_written_come_as_tokens_with_an_end_and_nothing_where_masked():
    store, tokenizer = memory_store(), letter_tokenizer()
    manifest = pack_toy(store, "say", 12)
    encode = AnswerEncoder(tokenizer, " ", end=3, most=7)
    with opened(store, manifest, encode_answers=encode) as stream:
        batches = [copied(b) for b in stream.epochs_from(0, stream.steps_per_epoch)]
    assert all(b["answers"].shape == (8, 7) and "labels" not in b and "targets" not in b for b in batches)
    assert (batches[-1]["answers"][~batches[-1]["mask"]] == NO_TOKEN).all()
    rows = [row.tolist() for b in batches for row in b["answers"][b["mask"]]]
    told = {" ".join(tokenizer.id_to_token(t) for t in row if t != NO_TOKEN) for row in rows}
    assert "r ##e ##d [SEP]" in told, "with its end, and without the [CLS] of a text"
    assert "a r ##e ##d c ##i ##r" in told, "cut where there is no more room, and then without an end"


def test_a_sample_without_an_answer_is_masked_and_named():
    store = memory_store()
    manifest = pack_toy(store, "ask", 12)
    task = replace(task_of(manifest), kind=TaskKind.GENERATE, classes=0, max_new_tokens=4)
    manifest = replace(manifest, kind=TaskKind.GENERATE, classes=())
    encode = AnswerEncoder(letter_tokenizer(), " ", end=3, most=4)
    with open_stream(
        store, manifest, task, letter_tokenizer(), 16, seed=0, rank=0, world=1, global_batch=8, encode_answers=encode
    ) as stream:
        batch = copied(next(iter(stream.epochs_from(0, 1))))
        assert not batch["mask"].any() and "it has no answer; a text is wanted" in stream.stats().bad[0].reason


def test_text_only_data_shares_one_mean_image():
    store = memory_store()
    with opened(store, pack_toy(store, "kin", 12)) as stream:
        batch = next(stream.epochs_from(0, 1))
        assert batch.pixels.stride()[0] == 0 and batch.pixels[3, 0, 2, 2].tolist() == list(MEAN_COLOUR)
        assert set(batch.token_type_ids[0, 0].tolist()) == {0, 1}


def test_a_resumed_stream_of_another_world_size_gives_bitwise_equal_global_batches(toy):
    store, manifest = toy
    with opened(store, manifest) as stream:
        per_epoch = stream.steps_per_epoch
        straight = [copied(b) for b in stream.epochs_from(0, 3 * per_epoch)]
    for world, start in ((2, 0), (3, 5), (4, per_epoch), (8, 2 * per_epoch + 1)):
        ranks = []
        for rank in range(world):
            with opened(store, manifest, rank, world) as stream:
                ranks.append([copied(b) for b in stream.epochs_from(start, 3 * per_epoch)])
        for step, parts in enumerate(zip(*ranks, strict=True), start=start):
            for name, expected in straight[step].items():
                together = torch.cat([p[name] for p in parts])[: len(expected)]
                assert torch.equal(together, expected), (world, step, name)


def test_validation_covers_each_sample_once_at_any_world_size(toy):
    store, manifest = toy
    for world in (1, 2, 3, 7):
        seen, lengths, valid = [], set(), []
        for rank in range(world):
            with opened(store, manifest, rank, world) as stream:
                batches = list(stream.validation())
                assert [b.valid for b in batches] == (valid or [b.valid for b in batches])
                valid = [b.valid for b in batches]
                lengths.add(len(batches))
                seen += [int(i) for b in batches for i in b.index if i >= 0]
        assert seen == list(range(60)) and len(lengths) == 1 and sum(valid) == 60


def test_few_shots_visit_the_same_few_samples_every_epoch():
    store = memory_store()
    manifest = pack_toy(store, "shape", 120)
    labels = manifest.labels()
    assert labels is not None
    chosen = select_shots(manifest.samples, labels, 2, seed=0)
    with opened(store, manifest, only=chosen) as stream:
        assert stream.samples_per_epoch == 24
        epochs = [slots([copied(b) for b in stream.epochs_from(e * 3, e * 3 + 3)]) for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) and epochs[0] != epochs[1]
    assert np.bincount(labels[epochs[0]]).tolist() == [2] * 12


def damage(store: MemoryStore, manifest: ShardManifest, key: str) -> ShardManifest:
    """Turn one image into rubbish inside an otherwise true shard: re-index it."""
    name = f"{manifest.dataset}/{manifest.split}/000001.tar"
    data = bytearray(store.get(name))
    at = data.index(b"\x89PNG")
    data[at + 30 : at + 60] = b"?" * 30
    store.put(name, bytes(data))
    return run_index(
        store, manifest.dataset, manifest.split, manifest.kind, manifest.classes, part_bytes=manifest.part_bytes
    ).manifest


def test_a_bad_sample_is_a_masked_slot_and_a_report_up_to_a_limit():
    store = memory_store()
    manifest = damage(store, pack_toy(store, "shape", 60), "000001.tar")
    with opened(store, manifest) as stream:
        batches = [copied(b) for b in stream.epochs_from(0, 2 * stream.steps_per_epoch)]
        bad = stream.stats().bad
    assert [(b.shard, b.key) for b in bad] == [("000001.tar", "000000016")] and "damaged" in bad[0].reason
    assert len(slots(batches)) == 2 * 59
    masked = next(b for b in batches[:7] if not b["mask"].all())
    slot = int((~masked["mask"]).nonzero()[0, 0])
    assert masked["pixels"][slot].sum() == 0 and masked["index"][slot] == -1
    strict = StreamLimits(bad_samples=0)
    with opened(store, manifest, limits=strict) as stream, pytest.raises(DataError, match=r"000001.tar 000000016"):
        list(stream.epochs_from(0, stream.steps_per_epoch))


def test_a_damaged_shard_is_an_error_that_names_it(toy):
    store = memory_store()
    manifest = pack_toy(store, "truth", 60)
    key = "toy_truth/train/000002.tar"
    data = bytearray(store.get(key))
    data[4500] ^= 4
    store.put(key, bytes(data))
    with (
        opened(store, manifest, limits=StreamLimits(tries=1)) as stream,
        pytest.raises(DataError, match=r"000002.tar, bytes 4096-8191"),
    ):
        list(stream.epochs_from(0, stream.steps_per_epoch))
    store.delete(key)
    with opened(store, manifest, limits=StreamLimits(tries=1)) as stream, pytest.raises(DataError, match="no such object"):
        list(stream.validation())
    assert threads() == []


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("atlas-")]


def test_threads_end_on_close_on_error_and_when_the_loop_is_left(toy):
    store, manifest = toy
    stream = opened(store, manifest)
    for batch in stream.epochs_from(0, 1000):
        if batch.step == 3:
            break
    assert next(stream.validation()).step == 0  # a new iteration ends the one that was left
    stream.close()
    stream.close()
    assert threads() == []
    with pytest.raises(DataError, match="closed"):
        stream.validation()
    with pytest.raises(KeyboardInterrupt), opened(store, manifest) as stream:
        for _ in stream.epochs_from(0, 1000):
            raise KeyboardInterrupt
    assert threads() == []


def test_a_small_split_is_fetched_once_for_all_epochs(toy):
    store, manifest = toy
    with opened(store, manifest) as stream:
        for _ in range(3):
            list(stream.epochs_from(0, stream.steps_per_epoch))
            list(stream.validation())
        assert stream.stats().bytes == manifest.size
        assert stream.stats().samples == 6 * 60


def test_a_budget_below_the_split_still_gives_every_sample(toy):
    store, manifest = toy
    limits = StreamLimits(memory_bytes=manifest.shards[0].size + 1, fetch_threads=3, lanes=2)
    with opened(store, manifest, limits=limits) as stream:
        assert sorted(slots([copied(b) for b in stream.epochs_from(0, stream.steps_per_epoch)])) == list(range(60))
        assert slots([copied(b) for b in stream.validation()]) == list(range(60))


def test_pictures_that_are_being_decoded_are_not_overwritten_by_what_is_fetched(toy, monkeypatch):
    store, manifest = toy
    monkeypatch.setattr(sampling, "WINDOW_BYTES", manifest.shards[0].size)

    def read(memory: int) -> list[dict[str, torch.Tensor]]:
        limits = StreamLimits(memory_bytes=memory, fetch_threads=3, lanes=1)
        with opened(store, manifest, limits=limits) as stream:
            return [copied(b) for b in stream.epochs_from(0, 3 * stream.steps_per_epoch)]

    plenty = read(1 << 30)

    def slow(*given: Any) -> None:
        time.sleep(0.002)
        decode_into(*given)

    monkeypatch.setattr(collate, "decode_into", slow)
    for batch, other in zip(plenty, read(manifest.shards[0].size + 1), strict=True):
        assert all(torch.equal(batch[name], other[name]) for name in batch)


def test_a_batch_stays_intact_while_the_next_is_drawn(toy):
    store, manifest = toy
    with opened(store, manifest) as stream:
        before, kept = None, None
        for batch in stream.epochs_from(0, 40):
            if before is not None:
                assert torch.equal(before.pixels, kept)
            before, kept = batch, batch.pixels.clone()


def test_what_does_not_fit_the_task_is_refused(toy):
    store, manifest = toy
    task = task_of(manifest)
    tokenizer = letter_tokenizer()
    for wrong, message in (({"classes": 3}, "3 classes"), ({"kind": "pair"}, "of kind pair")):
        changed = replace(task, **{k: TaskKind(v) if k == "kind" else v for k, v in wrong.items()})
        with pytest.raises(DataError, match=message):
            open_stream(store, manifest, changed, tokenizer, 16, seed=0, rank=0, world=1, global_batch=4)
    with pytest.raises(ConfigError, match="rank 2 of 2"):
        opened(store, manifest, 2, 2)
    with pytest.raises(ConfigError, match="not a fast tokenizer"):
        open_stream(store, manifest, task, object(), 16, seed=0, rank=0, world=1, global_batch=4)


def test_memory_is_flat_over_fifty_epochs(toy):
    """Resident memory after 10 epochs and after 50, in a stream that fits its budget and in one that does not."""
    store, manifest = toy
    for budget in (1 << 30, manifest.shards[0].size * 2):
        with opened(store, manifest, limits=StreamLimits(memory_bytes=budget, lanes=2)) as stream:
            early = 0
            for batch in stream.epochs_from(0, 50 * stream.steps_per_epoch):
                if batch.step == 10 * stream.steps_per_epoch:
                    early = resident_bytes()
            assert resident_bytes() - early < 8 << 20


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_what_cannot_heal_is_not_tried_again(toy):
    store, manifest = toy

    class Refusing:
        """A store whose reads fail in one way."""

        def __init__(self, error: Exception) -> None:
            self.error, self.reads, self.url = error, 0, "s3://refusing"

        def read_range(self, key: str, start: int, out: memoryview, *, if_match: str = "") -> int:
            self.reads += 1
            raise self.error

        def stat(self, key: str) -> object:
            return store.stat(key)

    for error, expected in (
        (AuthError("403"), AuthError),
        (MissingObject("404"), DataError),
        (PreconditionFailed("412"), DataError),
    ):
        refusing = Refusing(error)
        with opened(refusing, manifest, limits=StreamLimits(fetch_threads=1)) as stream, pytest.raises(expected):  # type: ignore[arg-type]
            next(stream.validation())
        assert refusing.reads == 1
