"""What the backbone is pretrained on: three streams of batches, and the heads (thrown away afterwards) that turn them into
losses.

- *naming*: a photo or a character with the constant prompt; name its class from the pooled output.
- *talking*: a picture with a sentence; is the sentence true (matching), what is the answer, what was the masked word.
- *reading*: two plain English texts with an empty picture; do they belong together, are the words of the second in the first,
  what was the masked word, and, from the pooled output alone, which word stood where: it has to carry the text to whatever head
  comes later.

All but the masked words are read from the pooled output, since that is all the heads of later tasks will see. Naming is also
read from the mean over patches: gradients then reach every patch directly, and the first epochs learn several times faster.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, ViltModel

from scripts.pretrain_tiny_vilt import augment
from scripts.pretrain_tiny_vilt.backbone import PAD, run_backbone
from scripts.pretrain_tiny_vilt.sentences import ANSWERS
from scripts.pretrain_tiny_vilt.words import MAX_TEXT, PROMPT

Losses = dict[str, Tensor]
SPECIAL_TOKENS = 5  # [PAD] [UNK] [CLS] [SEP] [MASK] are the first ids
WEIGHTS = {
    "photo": 1.0,
    "photo_patches": 0.5,
    "glyph": 0.4,
    "glyph_patches": 0.2,
    "match": 1.0,
    "answer": 1.0,
    "word": 0.3,
    "pair": 0.6,
    "quote": 1.0,
    "text_word": 0.5,
    "recall": 1.0,
}
RECALLED = 12  # the first words of a text, which the pooled output has to name in order
LONGEST_QUOTE = 3


class Corpus:
    """The arrays of ``build.py``, mapped, and the random generator that draws from them."""

    def __init__(self, work: Path, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self._work = work
        self.photos, self.photo_class, self.photo_texts = map(self._load, ("photos", "photo_class", "photo_texts"))
        self.scenes, self.scene_texts = map(self._load, ("scenes", "scene_texts"))
        self.scene_truth, self.scene_answer = map(self._load, ("scene_truth", "scene_answer"))
        self.glyphs, self.glyph_class, self.glyph_texts = map(self._load, ("glyphs", "glyph_class", "glyph_texts"))
        self.pair_first, self.pair_second = map(self._load, ("pair_first", "pair_second"))
        self.named_glyphs = torch.nonzero(self.glyph_class < len(self.glyph_texts)).flatten()
        tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
        self.mask_id = int(tokenizer.convert_tokens_to_ids("[MASK]"))
        self.vocabulary = len(tokenizer)
        self.prompt = torch.tensor(tokenizer(PROMPT)["input_ids"])
        mean = self._load("mean_photo").float().view(1, 3, 1, 1)
        self.empty_picture = augment.normalise(mean.expand(1, 3, 64, 64))

    def _load(self, name: str) -> Tensor:
        return torch.from_numpy(np.load(self._work / f"{name}.npy", mmap_mode="c"))

    def draw(self, below: int, count: int) -> Tensor:
        """``count`` random numbers in [0, below)."""
        return torch.randint(below, (count,), generator=self.generator)

    def coin(self, count: int, chance: float) -> Tensor:
        """``count`` booleans, true with that chance."""
        return torch.rand(count, generator=self.generator) < chance


class Heads(nn.Module):
    """Readouts of the pretraining tasks."""

    def __init__(self, corpus: Corpus, width: int) -> None:
        super().__init__()
        self.photo = nn.Linear(width, int(corpus.photo_class.max()) + 1)
        self.glyph = nn.Linear(width, int(corpus.glyph_class.max()) + 1)
        self.photo_patches = nn.Linear(width, self.photo.out_features)
        self.glyph_patches = nn.Linear(width, self.glyph.out_features)
        self.answer = nn.Linear(width, len(ANSWERS))
        self.match = nn.Linear(width, 2)
        self.pair = nn.Linear(width, 2)
        self.quote = nn.Linear(width, 2)
        self.places = nn.Parameter(torch.randn(RECALLED, width) * 0.5)
        self.word = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.word_bias = nn.Parameter(torch.zeros(corpus.vocabulary))

    def words(self, hidden: Tensor, model: ViltModel) -> Tensor:
        """Scores over the vocabulary for hidden states [N, D]; the output matrix is the word embedding."""
        return functional.linear(self.word(hidden), model.get_input_embeddings().weight, self.word_bias)


Stream = Callable[[ViltModel, Heads, Corpus], Losses]


def name_photos(model: ViltModel, heads: Heads, corpus: Corpus, *, count: int = 64, keep: int | None = None) -> Losses:
    """Class of a photo under the constant prompt; ``keep`` patches are looked at."""
    chosen = corpus.draw(len(corpus.photos), count)
    pixels = augment.photos(corpus.photos[chosen], corpus.generator)
    prompt = corpus.prompt.expand(count, -1)
    hidden, pooled = run_backbone(model, prompt, pixels, keep=keep, generator=corpus.generator)
    patches = hidden[:, prompt.shape[1] + 1 :].mean(dim=1)
    labels = corpus.photo_class[chosen]
    return {
        "photo": functional.cross_entropy(heads.photo(pooled), labels, label_smoothing=0.1),
        "photo_patches": functional.cross_entropy(heads.photo_patches(patches), labels, label_smoothing=0.1),
    }


def name_glyphs(model: ViltModel, heads: Heads, corpus: Corpus, *, count: int = 32) -> Losses:
    """Class of a drawn character, from a font or invented, under the constant prompt."""
    chosen = corpus.draw(len(corpus.glyphs), count)
    pixels = augment.pen_strokes(corpus.glyphs[chosen], corpus.generator)
    prompt = corpus.prompt.expand(count, -1)
    hidden, pooled = run_backbone(model, prompt, pixels)
    patches = hidden[:, prompt.shape[1] + 1 :].mean(dim=1)
    labels = corpus.glyph_class[chosen]
    return {
        "glyph": functional.cross_entropy(heads.glyph(pooled), labels, label_smoothing=0.05),
        "glyph_patches": functional.cross_entropy(heads.glyph_patches(patches), labels, label_smoothing=0.05),
    }


def talk(model: ViltModel, heads: Heads, corpus: Corpus, *, scenes: int = 36, photos: int = 10, glyphs: int = 6) -> Losses:
    """Pictures with sentences: matching, answers, masked words. One batch in ten is shown as a "second image" (type 2)."""
    parts = [_scene_sentences(corpus, scenes), _photo_sentences(corpus, photos), _glyph_sentences(corpus, glyphs)]
    pixels, texts, truth, answer = (torch.cat(column) for column in zip(*parts, strict=True))
    texts = texts[:, : int((texts != PAD).sum(dim=1).max())]
    # A third of the true sentences is masked; those are not asked whether they match.
    hidden_words = (truth == 1) & corpus.coin(len(truth), 0.33)
    masked, targets = _mask_words(texts, hidden_words, 0.3, corpus)
    image_type = 2 if bool(corpus.coin(1, 0.1)) else 1
    states, pooled = run_backbone(model, masked, pixels, image_type=image_type)
    truth = truth.masked_fill(hidden_words, -1)
    return {
        "match": functional.cross_entropy(heads.match(pooled), truth, ignore_index=-1),
        "answer": functional.cross_entropy(heads.answer(pooled), answer, ignore_index=-1),
        "word": _word_loss(states, targets, model, heads),
    }


def read(model: ViltModel, heads: Heads, corpus: Corpus, *, count: int = 160) -> Losses:
    """English with the empty picture: half of the rows are pairs of a source, half of them mismatched; the other half ask if one
    to three words are a quote from the first text."""
    chosen = corpus.draw(len(corpus.pair_first), count)
    first = corpus.pair_first[chosen].long()
    together = corpus.coin(count, 0.5)
    other = torch.where(together, chosen, corpus.draw(len(corpus.pair_first), count))
    asks_quote = torch.arange(count) % 2 == 1
    quotes = _quotes(corpus.pair_first[other].long(), corpus.pair_second.shape[1], corpus)
    second = torch.where(asks_quote[:, None], quotes, corpus.pair_second[other].long())
    texts, types = _join(first, second)
    # Callers differ in whether they mark the second text; half of the batches do not.
    types = types * int(corpus.coin(1, 0.5))
    masked, targets = _mask_words(texts, ~asks_quote, 0.15, corpus)
    # An empty picture says nothing: mostly a few of its patches are enough, now and then all, as tasks show them.
    keep = None if bool(corpus.coin(1, 0.1)) else 4
    pixels = corpus.empty_picture.expand(count, -1, -1, -1)
    states, pooled = run_backbone(model, masked, pixels, token_types=types, keep=keep, generator=corpus.generator)
    return {
        "pair": functional.cross_entropy(heads.pair(pooled[~asks_quote]), together[~asks_quote].long()),
        "quote": functional.cross_entropy(heads.quote(pooled[asks_quote]), _contains(first, quotes)[asks_quote].long()),
        "text_word": _word_loss(states, targets, model, heads),
        "recall": _recall_loss(pooled, texts, model, heads),
    }


def total(losses: Losses) -> Tensor:
    """The weighted sum of a stream's losses."""
    return torch.stack([WEIGHTS[name] * loss for name, loss in losses.items()]).sum()


# ---- batches: pictures [B, 3, 64, 64], texts [B, T], truth [B] and answers [B] with -1 for "not asked" --------------------

Batch = tuple[Tensor, Tensor, Tensor, Tensor]


def _scene_sentences(corpus: Corpus, count: int) -> Batch:
    scene = corpus.draw(len(corpus.scenes), count)
    row = corpus.draw(corpus.scene_texts.shape[1], count)
    pixels = augment.normalise(corpus.scenes[scene])
    return pixels, corpus.scene_texts[scene, row].long(), corpus.scene_truth[scene, row], corpus.scene_answer[scene, row]


def _photo_sentences(corpus: Corpus, count: int) -> Batch:
    chosen = corpus.draw(len(corpus.photos), count)
    pixels = augment.photos(corpus.photos[chosen], corpus.generator)
    truth = corpus.coin(count, 0.6)
    label = corpus.photo_class[chosen]
    classes = len(corpus.photo_texts)
    far = corpus.draw(classes - 1, count) + 1
    near = corpus.draw(6, count) + 1  # neighbours in the taxonomy
    shift = torch.where(corpus.coin(count, 0.4), near, far)
    shown = torch.where(truth, label, (label + shift) % classes)
    texts = corpus.photo_texts[shown, corpus.draw(corpus.photo_texts.shape[1], count)].long()
    return pixels, texts, truth.long(), torch.full((count,), -1)


def _glyph_sentences(corpus: Corpus, count: int) -> Batch:
    chosen = corpus.named_glyphs[corpus.draw(len(corpus.named_glyphs), count)]
    pixels = augment.pen_strokes(corpus.glyphs[chosen], corpus.generator)
    truth = corpus.coin(count, 0.6)
    label = corpus.glyph_class[chosen]
    classes = len(corpus.glyph_texts)
    shown = torch.where(truth, label, (label + 1 + corpus.draw(classes - 1, count)) % classes)
    return pixels, corpus.glyph_texts[shown].long(), truth.long(), torch.full((count,), -1)


def _join(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """[CLS] a [SEP] and [CLS] b [SEP], both padded, to [CLS] a [SEP] b [SEP] with its token types, padding last."""
    texts = torch.cat([first, second[:, 1:]], dim=1)
    types = torch.cat([torch.zeros_like(first), torch.ones_like(second[:, 1:])], dim=1)
    order = (texts == PAD).long().argsort(dim=1, stable=True)[:, :MAX_TEXT]
    texts, types = texts.gather(1, order), types.gather(1, order)
    longest = int((texts != PAD).sum(dim=1).max())
    return texts[:, :longest], (types * (texts != PAD))[:, :longest]


def _quotes(texts: Tensor, length: int, corpus: Corpus) -> Tensor:
    """A run of one to LONGEST_QUOTE words of each text [B, T], written as a text of its own [B, length]."""
    words = (texts != PAD).sum(dim=1) - 2  # without [CLS] and [SEP]
    size = torch.minimum(corpus.draw(LONGEST_QUOTE, len(texts)) + 1, words)
    start = 1 + (torch.rand(len(texts), generator=corpus.generator) * (words - size + 1)).long()
    place = torch.arange(length).expand(len(texts), -1)
    inside = (place >= 1) & (place <= size[:, None])
    source = (start[:, None] + place - 1).clamp(0, texts.shape[1] - 1)
    end = texts.gather(1, (words + 1)[:, None])  # [SEP]
    quoted = torch.where(inside, texts.gather(1, source), torch.where(place == size[:, None] + 1, end, PAD))
    return torch.where(place == 0, texts[:, :1], quoted)


def _contains(texts: Tensor, quotes: Tensor) -> Tensor:
    """[B] whether every token of the quote is somewhere in its text."""
    found = (quotes[:, :, None] == texts[:, None, :]).any(dim=2)
    return (found | (quotes == PAD)).all(dim=1)


def _mask_words(texts: Tensor, rows: Tensor, chance: float, corpus: Corpus) -> tuple[Tensor, Tensor]:
    """Hide words of the chosen rows: (texts with [MASK], targets with -1 where nothing is hidden). One in ten stays visible."""
    hidden = (texts >= SPECIAL_TOKENS) & rows[:, None]
    hidden &= torch.rand(texts.shape, generator=corpus.generator) < chance
    shown = torch.rand(texts.shape, generator=corpus.generator) < 0.1
    return texts.masked_fill(hidden & ~shown, corpus.mask_id), texts.masked_fill(~hidden, -1)


def _word_loss(states: Tensor, targets: Tensor, model: ViltModel, heads: Heads) -> Tensor:
    asked = targets >= 0
    if not bool(asked.any()):
        return states.sum() * 0
    return functional.cross_entropy(heads.words(states[:, : targets.shape[1]][asked], model), targets[asked])


def _recall_loss(pooled: Tensor, texts: Tensor, model: ViltModel, heads: Heads) -> Tensor:
    """How badly the pooled output [B, D] names the first words of its text [B, T], each at its place, in nats a word."""
    wanted = texts[:, 1 : 1 + RECALLED]
    asked = wanted >= SPECIAL_TOKENS
    hidden = pooled[:, None, :] + heads.places[: wanted.shape[1]]
    return functional.cross_entropy(heads.words(hidden[asked], model), wanted[asked])
