"""Small data for tests: a letter tokenizer, drawn splits packed into a store in memory, and the tasks that read them."""

from __future__ import annotations

import string
import uuid
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from atlas_dist.core.manifest import ShardManifest
from atlas_dist.core.types import TaskSpec
from atlas_dist.data.pack import run_pack
from atlas_dist.store.objects import MemoryStore, ObjectStore


def letter_tokenizer() -> Tokenizer:
    """Words as letters: every text of the toys has tokens, and no file is needed."""
    letters = list(string.ascii_lowercase)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *("##" + c for c in letters)]
    tokenizer = Tokenizer(WordPiece({token: i for i, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def memory_store() -> MemoryStore:
    return MemoryStore(f"test-{uuid.uuid4().hex[:8]}")


def pack_toy(
    store: ObjectStore, task: str = "shape", samples: int = 60, *, split: str = "train", shard_samples: int = 16, **more: Any
) -> ShardManifest:
    """A packed toy split `toy_<task>/<split>`."""
    options: Mapping[str, Any] = {"task": task, "samples": samples, "side": 16, **more.pop("options", {})}
    more.setdefault("part_bytes", 1 << 12)
    return run_pack("toy", None, store, f"toy_{task}", split, options=options, shard_samples=shard_samples, **more).manifest


def task_of(manifest: ShardManifest, max_text: int = 24) -> TaskSpec:
    """The task that a packed split serves."""
    return TaskSpec(
        name=manifest.dataset,
        kind=manifest.kind,
        classes=len(manifest.classes),
        max_text=max_text,
        dataset=manifest.dataset,
        train=manifest.split,
        val=manifest.split,
        train_digest=manifest.digest,
        val_digest=manifest.digest,
    )
