"""Compressed samples to arrays: JPEG and PNG into a uint8 batch, texts into token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from atlas_dist.data.images import PIXEL_CAP, open_rgb, sniff
from atlas_dist.errors import ConfigError, DataError

MEAN_COLOUR = (120, 114, 104)
"""RGB of the mean COCO image, the picture of tasks that have none (docs/method.md, Tasks)."""

Pixels = NDArray[np.uint8]


def decode_into(data: memoryview, out: Pixels) -> None:
    """Decode a JPEG or PNG to fill `out`, uint8 [H, W, 3], RGB, resized where it has another size.

    A JPEG larger than the target is decoded at the smallest DCT scale that is not smaller than it: at half or a quarter of the
    size most of the work is never done.

    Raises:
        DataError: neither JPEG nor PNG, cut, damaged or too large.
    """
    height, width = out.shape[:2]
    decoded = _jpeg(data, out) if sniff(data) == "jpg" else np.asarray(open_rgb(data))
    if decoded is None:
        return
    if decoded.shape != out.shape:
        decoded = np.asarray(Image.fromarray(decoded).resize((width, height), Image.Resampling.BICUBIC))
    np.copyto(out, decoded)


def _jpeg(data: memoryview, out: Pixels) -> Pixels | None:
    """The decoded image, or None when it was decoded straight into `out`."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if height * width > PIXEL_CAP:
            raise DataError(f"{width} x {height} pixels are more than {PIXEL_CAP}")
        if colours == "CMYK":
            return np.asarray(open_rgb(data))
        if (height, width) == out.shape[:2]:
            simplejpeg.decode_jpeg(data, "RGB", buffer=out)
            return None
        smaller = height > out.shape[0] and width > out.shape[1]
        least = {"min_height": out.shape[0], "min_width": out.shape[1], "min_factor": 1} if smaller else {}
        decoded: Pixels = simplejpeg.decode_jpeg(data, "RGB", **least)
    except ValueError as error:
        raise DataError(f"damaged JPEG: {str(error)[:120]}") from error
    return decoded


class TextEncoder:
    """A batched tokenizer of fixed length. It owns a copy of the tokenizer: padding and truncation are state there, and not
    thread-safe.

    Args:
        tokenizer: a fast tokenizer of transformers, or a `tokenizers.Tokenizer`, with a padding token.
        length: L, tokens a text; longer ones are cut (of a pair, the longer segment first), shorter ones padded.
    """

    def __init__(self, tokenizer: Any, length: int) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
        if not isinstance(backend, Tokenizer):
            raise ConfigError(f"{type(tokenizer).__name__} is not a fast tokenizer.", fix="Use one that `tokenizers` backs.")
        pad = getattr(tokenizer, "pad_token", None) or "[PAD]"
        pad_id = backend.token_to_id(pad)
        if pad_id is None:
            raise ConfigError(f"The tokenizer has no padding token {pad!r}.")
        self._tokenizer = Tokenizer.from_str(backend.to_str())
        self._tokenizer.enable_truncation(length, strategy="longest_first")
        self._tokenizer.enable_padding(length=length, pad_id=pad_id, pad_token=pad)

    def __call__(self, texts: Sequence[tuple[str, ...]]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """(input ids, attention mask, token types), each int64 [len(texts), L]; a text is one segment or two."""
        encoded = self._tokenizer.encode_batch_fast([t if len(t) == 2 else t[0] for t in texts])
        ids, mask, types = [e.ids for e in encoded], [e.attention_mask for e in encoded], [e.type_ids for e in encoded]
        return np.array(ids, np.int64), np.array(mask, np.int64), np.array(types, np.int64)
