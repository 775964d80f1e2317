"""What a service is told: a wrong key or value is named, with what would be valid."""

from __future__ import annotations

import pytest

from atlas_dist.errors import ConfigError
from atlas_dist.serve.settings import read_settings


def test_words_of_a_command_line_are_values() -> None:
    """`serve run … max_batch=4` gives texts."""
    settings = read_settings({"bank": "/bank", "max_batch": "4", "open": "true", "max_body_mb": "1.5"})
    assert (settings.max_batch, settings.open, settings.max_body) == (4, True, 1_500_000)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "bank"),
        ({"bank": "b", "max_bach": 3}, "did you mean max_batch?"),
        ({"bank": "b", "replicas": 0}, "replicas"),
        ({"bank": "b", "max_megapixels": 100}, "less than or equal to 67"),
    ],
)
def test_a_fault_is_named(given: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_settings(given)
    assert said in refused.value.message
