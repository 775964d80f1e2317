"""Names of facts: one value, one byte string; one safe path."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_dist.core.keys import canonical_json, check_key, check_name, digest_of, key_of
from atlas_dist.core.types import Budget, Stage
from atlas_dist.errors import DataError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_canonical_json_reads_back_as_the_value(value: object) -> None:
    assert json.loads(canonical_json(value)) == value


@given(st.dictionaries(st.text(max_size=5), st.integers(), max_size=6))
def test_the_order_of_keys_does_not_matter(value: dict[str, int]) -> None:
    assert canonical_json(value) == canonical_json(dict(reversed(value.items())))


def test_dataclasses_enums_and_tuples_have_one_form() -> None:
    assert canonical_json({"stage": Stage.ONE, "pair": (1, 2.5)}) == b'{"pair":[1,2.5],"stage":"stage1"}'
    assert digest_of(Budget()) == digest_of(Budget()) != digest_of(Budget(lr=1e-3))
    assert len(key_of(Budget())) == 32


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_json_can_not_say_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json(value)
    with pytest.raises(TypeError, match="no canonical JSON form"):
        canonical_json({"set": {1}})


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "a\\b", "-rf", "a b", "a\n", "x" * 201, "é"])
def test_a_name_can_not_leave_its_folder(name: str) -> None:
    with pytest.raises(DataError, match="not a safe name"):
        check_name(name, "data set")


def test_a_key_is_checked_segment_by_segment() -> None:
    assert check_key("runs/demo/ledger/0000") == "runs/demo/ledger/0000"
    for bad in ("runs//x", "/runs", "runs/../x", "runs/"):
        with pytest.raises(DataError):
            check_key(bad)
