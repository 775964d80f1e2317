"""How near a written answer comes to the right one: exact match and token F1, as of SQuAD (Rajpurkar et al. 2016, arXiv
1606.05250), but with less taken away from a text before they are compared. Pure."""

from __future__ import annotations

import unicodedata
from collections import Counter


def normal(text: str) -> str:
    """What answers are compared by: composed characters (NFKC), no capitals, single spaces, none at the ends.

    >>> normal("  A Red\\n square ")
    'a red square'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def exact_match(written: str, right: str) -> float:
    """1.0 where they are the same when compared so, else 0.0.

    >>> exact_match("Red", " red"), exact_match("red.", "red")
    (1.0, 0.0)
    """
    return float(normal(written) == normal(right))


def token_f1(written: str, right: str) -> float:
    """Harmonic mean of the shares of the written words that are right, and of the right ones that were written, 0 to 1; words
    count as often as they stand.

    >>> token_f1("a red square", "red square"), token_f1("", "red"), token_f1("", "")
    (0.8, 0.0, 1.0)
    """
    said, wanted = normal(written).split(), normal(right).split()
    if not said or not wanted:
        return float(said == wanted)
    shared = sum((Counter(said) & Counter(wanted)).values())
    return 2 * shared / (len(said) + len(wanted))
