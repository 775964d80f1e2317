"""What a terminal has no letter for is spelt, and ends nothing."""

from __future__ import annotations

import codecs
import io
import sys
import unicodedata

SPELT = "atlas-dist-spelt"
"""The name of our way to encode what an encoding has no letter for."""
_SPELLING = {
    "α": "alpha", "σ": "sigma", "Σ": "sum of", "Δ": "delta", "ρ": "rho", "·": ".", "…": "...", "–": "-", "—": "-", "−": "-",
    "→": "->", "←": "<-", "►": ">", "≥": ">=", "≤": "<=", "≈": "~", "×": "x", "±": "+-", "∘": "o", "✓": "ok", "✗": "x",
    "“": '"', "”": '"', "„": '"', "‘": "'", "’": "'", "€": "EUR", "▁": "_", "█": "#",
}  # fmt: skip


def spell_out() -> None:
    """Standard output and error write what their encoding lacks in other letters; α becomes alpha. Encodings that have all
    letters, and what a user has set (`PYTHONIOENCODING=ascii:replace`), stay as they are."""
    codecs.register_error(SPELT, _spelt)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape", "backslashreplace"):
            stream.reconfigure(errors=SPELT)


def _spelt(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_letter, error.object[error.start : error.end])), error.end


def _letter(letter: str) -> str:
    """In ASCII, which every terminal has."""
    if letter in _SPELLING:
        return _SPELLING[letter]
    if 0x2500 <= ord(letter) < 0x2580:  # lines of tables
        return "|" if letter in "│┃║" else "-" if letter in "─━═" else "+"
    if 0x2800 <= ord(letter) < 0x2900:  # what turns while one waits
        return "*"
    plain = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
    return plain or ascii(letter)[1:-1]
