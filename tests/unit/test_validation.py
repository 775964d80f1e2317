"""What pydantic finds wrong is told the same way wherever it is found."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from atlas_dist.validation import faults


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    rank: int = Field(default=1, ge=1)
    even: int = 2

    @field_validator("even")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("give an even number")
        return value


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    inner: Inner = Inner()
    needed: str


NO_TEXT = "needed: a text is needed, and 1 is none: write it in quotes where it is meant as one."


@pytest.mark.parametrize(
    ("tree", "lines"),
    [
        ({"needed": "x", "inner": {"rank": 0}}, ["inner.rank: Input should be greater than or equal to 1 (it is 0)."]),
        ({"needed": "x", "inner": {"even": 3}}, ["inner.even: give an even number (it is 3)."]),
        ({"needed": "x", "inner": {"rnak": 3}}, ["inner.rnak: there is no such key; did you mean rank? valid here: even, rank."]),
        ({}, ["needed: Field required."]),
        ([], ["it: Input should be a valid dictionary or instance of Outer (it is [])."]),
        (
            {"needed": 1, "colour": 2},
            [
                "needed: a text is needed, and 1 is none: write it in quotes where it is meant as one.",
                "colour: there is no such key.",
            ],
        ),
    ],
)
def test_one_line_a_fault_with_key_value_and_what_is_valid(tree: object, lines: list[str]) -> None:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(tree)
    assert faults(caught.value, lambda location: Inner.model_fields if location == ("inner",) else ()) == lines


def test_a_long_value_is_cut() -> None:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate({"needed": list(range(1000))})
    (line,) = faults(caught.value, prefix="settings.")
    assert line.startswith("settings.needed: ")
    assert len(line) < 300
