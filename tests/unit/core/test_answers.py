"""How near a written answer comes to the right one."""

from __future__ import annotations

import doctest

import pytest

from atlas_dist.core import answers
from atlas_dist.core.answers import exact_match, token_f1


def test_the_examples_are_right() -> None:
    assert doctest.testmod(answers).failed == 0


@pytest.mark.parametrize(("written", "right"), [("RED", "red"), ("a  red\nsquare ", "A red square"), ("ﬁve", "five"), ("é", "é")])
def test_case_spaces_and_spellings_of_one_letter_do_not_count(written: str, right: str) -> None:
    assert exact_match(written, right) == token_f1(written, right) == 1.0


@pytest.mark.parametrize(("written", "right"), [("red.", "red"), ("the red", "red"), ("", "red"), ("5", "five")])
def test_everything_else_does(written: str, right: str) -> None:
    assert exact_match(written, right) == 0.0 and token_f1(written, right) < 1.0


def test_a_word_counts_as_often_as_it_stands() -> None:
    assert token_f1("no no no", "no") == 0.5
    assert token_f1("square red", "red square") == 1.0, "in any order"
