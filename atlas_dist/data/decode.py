"""Compressed samples to arrays: pictures into a uint8 batch, texts into token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from atlas_dist.core.types import NO_TOKEN, Resample
from atlas_dist.data.images import Pixels, decode_picture, decode_plain_jpeg, resized, sniff
from atlas_dist.data.sample import Texts, Turns
from atlas_dist.errors import ConfigError

MEAN_COLOUR = (120, 114, 104)
"""RGB of the mean COCO image, the picture of tasks that have none (docs/method.md, Tasks)."""


def decode_into(data: memoryview, out: Pixels, resample: Resample = Resample.BICUBIC) -> None:
    """Decode a picture to fill `out`, uint8 [H, W, 3], RGB, resized where it has another size.

    A plain JPEG larger than the target is decoded at the smallest DCT scale that is not smaller than it: at half or a quarter of
    the size most of the work is never done.

    Raises:
        PictureError: not a picture that is read, cut, damaged or too large.
    """
    height, width = out.shape[:2]
    decoded = decode_plain_jpeg(data, at_least=(height, width), out=out) if sniff(data) == "jpg" else None
    if decoded is out:
        return
    if decoded is None:
        decoded = decode_picture(data)
    if decoded.shape != out.shape:
        decoded = np.asarray(resized(decoded, width, height, resample))
    np.copyto(out, decoded)


def longer_than(tokenizer: Any, length: int, texts: Sequence[tuple[str, ...]]) -> list[int]:
    """Numbers of the texts (one segment or two each) that have more than `length` tokens, [CLS] and [SEP] included: those that
    `TextEncoder` cuts."""
    backend = Tokenizer.from_str(getattr(tokenizer, "backend_tokenizer", tokenizer).to_str())
    backend.no_truncation()
    backend.no_padding()
    encoded = backend.encode_batch_fast([t if len(t) == 2 else t[0] for t in texts])
    return [number for number, text in enumerate(encoded) if len(text.ids) > length]


class TextEncoder:
    """A batched tokenizer of fixed length. It owns a copy of the tokenizer: padding and truncation are state there, and not
    thread-safe.

    Args:
        tokenizer: a fast tokenizer of transformers, or a `tokenizers.Tokenizer`, with a padding token.
        length: tokens a text has at most; longer ones are cut (of a pair, the longer segment first).
        padded: L, tokens that texts are padded to; 0 = `length`.
    """

    def __init__(self, tokenizer: Any, length: int, padded: int = 0) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
        if not isinstance(backend, Tokenizer):
            raise ConfigError(f"{type(tokenizer).__name__} is not a fast tokenizer.", fix="Use one that `tokenizers` backs.")
        pad = getattr(tokenizer, "pad_token", None) or "[PAD]"
        pad_id = backend.token_to_id(pad)
        if pad_id is None:
            raise ConfigError(f"The tokenizer has no padding token {pad!r}.")
        self._tokenizer = Tokenizer.from_str(backend.to_str())
        self._tokenizer.enable_truncation(length, strategy="longest_first")
        self._tokenizer.enable_padding(length=padded or length, pad_id=pad_id, pad_token=pad)

    def __call__(self, texts: Sequence[tuple[str, ...]]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """(input ids, attention mask, token types), each int64 [len(texts), L]; a text is one segment or two."""
        encoded = self._tokenizer.encode_batch_fast([t if len(t) == 2 else t[0] for t in texts])
        ids, mask, types = [e.ids for e in encoded], [e.attention_mask for e in encoded], [e.type_ids for e in encoded]
        return np.array(ids, np.int64), np.array(mask, np.int64), np.array(types, np.int64)


class ConversationPrompt:
    """How a decoder is asked a question that others were asked before: as one text, in the words of its chat template. It owns a
    copy of the tokenizer, as `TextEncoder` does.

    Args:
        tokenizer: as of `TextEncoder`.
        before_answer, before_question: what stands between a question and its answer, and between that and the next question.
        length: tokens of a text at most.
    """

    def __init__(self, tokenizer: Any, before_answer: str, before_question: str, length: int) -> None:
        self._tokenizer = Tokenizer.from_str(getattr(tokenizer, "backend_tokenizer", tokenizer).to_str())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._before_answer, self._before_question, self._length = before_answer, before_question, length

    def __call__(self, texts: Texts, earlier: Turns) -> Texts:
        """The first text behind as many of the turns before it, the latest, as there is room for; the others as they are."""
        (question, *rest), *others = texts
        return ((self._joined(question, self.kept(question, earlier)), *rest), *others)

    def kept(self, question: str, earlier: Turns) -> Turns:
        """Those turns. A conversation loses its oldest ones: cut as other texts are, it would lose what is asked."""
        while earlier and len(self._tokenizer.encode(self._joined(question, earlier)).ids) > self._length:
            earlier = earlier[1:]
        return earlier

    def _joined(self, question: str, earlier: Turns) -> str:
        before = [f"{asked}{self._before_answer}{said}{self._before_question}" for asked, said in earlier]
        return "".join([*before, question])


class AnswerEncoder:
    """Answers as the tokens that a decoder writes. It owns a copy of the tokenizer, as `TextEncoder` does.

    Args:
        tokenizer: as of `TextEncoder`.
        before: what an answer is written behind, such as a space.
        end: id of the token that ends one.
        most: M, tokens of an answer with its end; of a longer one, the first so many, without an end.
    """

    def __init__(self, tokenizer: Any, before: str, end: int, most: int) -> None:
        self._tokenizer = Tokenizer.from_str(getattr(tokenizer, "backend_tokenizer", tokenizer).to_str())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._before, self._end, self._most = before, end, most

    def longer(self, answers: Sequence[str]) -> list[int]:
        """Numbers of those that are cut."""
        encoded = self._tokenizer.encode_batch_fast(
            [self._before + answer.strip() for answer in answers], add_special_tokens=False
        )
        return [number for number, answer in enumerate(encoded) if len(answer.ids) >= self._most]

    def __call__(self, answers: Sequence[str | None]) -> NDArray[np.int64]:
        """int64 [len(answers), M], `NO_TOKEN` behind the ends and where there is no answer."""
        encoded = self._tokenizer.encode_batch_fast(
            [self._before + (answer or "").strip() for answer in answers], add_special_tokens=False
        )
        out = np.full((len(answers), self._most), NO_TOKEN, np.int64)
        for row, answer, tokens in zip(out, answers, encoded, strict=True):
            ids = [*tokens.ids, self._end][: self._most] if answer is not None else []
            row[: len(ids)] = ids
        return out
