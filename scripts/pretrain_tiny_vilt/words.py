"""Words: captions of photos, plain English from the unlabelled side of two text sets, and the tokenizer made from all of it."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCABULARY = 4096
MAX_TEXT = 48
PROMPT = "This is an image."  # what picture-only tasks show as text
_PHOTO_FORMS = (
    "a photo of {a} {name}.",
    "a picture of {a} {name}.",
    "{a} {name}.",
    "this is {a} {name}.",
    "there is {a} {name} in the picture.",
    "a small photo of the {name}.",
    "what is this? {a} {name}.",
    "what is in the picture? {a} {name}.",
    "is this {a} {name}? yes.",
)


def photo_caption(names: list[str], rng: Random) -> str:
    """A sentence naming one picture. ``names`` are synonyms such as ["golden retriever", "retriever"]."""
    name = rng.choice(names)
    return rng.choice(_PHOTO_FORMS).format(name=name, a="an" if name[0] in "aeiou" else "a")


def photo_names(words: str) -> list[str]:
    """Synonyms from a line of words.txt, plus each one's last word: in English compounds, the more general noun.

    "golden retriever, X" -> golden retriever, X, retriever. Latin names stay in: they do no harm.
    """
    names = [name.strip().lower() for name in words.split(",")]
    heads = [name.split()[-1] for name in names[:2] if " " in name]
    return names + heads


Pair = tuple[str, str]


def english_pairs(data: Path) -> list[list[Pair]]:
    """Text pairs that belong together, grouped by source record; no answer or label is read.

    CommonsenseQA train: a question with each of its five choices (which of them is right is ignored). PIQA's unlabelled test
    file: a goal with each of its two solutions.
    """
    groups: list[list[Pair]] = []
    for record in _json_lines(data / "commonsenseqa.zip", "commonsenseqa/train_rand_split.jsonl"):
        question = record["question"]
        groups.append([(question["stem"], choice["text"]) for choice in question["choices"]])
    goals = _json_lines(data / "piqa.zip", "piqa/tests.jsonl")
    groups += [[(record["goal"], record["sol1"]), (record["goal"], record["sol2"])] for record in goals]
    return groups


def train_tokenizer(corpus: Iterable[str]) -> PreTrainedTokenizerFast:
    """A lower-case WordPiece tokenizer of VOCABULARY tokens, laid out as BERT's: [CLS] a [SEP] b [SEP], types 0 and 1."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    # limit_alphabet keeps stray symbols out; the frequent words are what the room is for.
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY, special_tokens=list(SPECIAL), limit_alphabet=70, show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=MAX_TEXT,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def _json_lines(archive: Path, member: str) -> list[dict[str, Any]]:
    with zipfile.ZipFile(archive) as files:
        return [json.loads(line) for line in files.read(member).decode("utf-8").splitlines() if line.strip()]
