"""`config --explain KEY`: what a key is, what it may be, and who set it."""

from __future__ import annotations

import pytest

from atlas_dist.config import RunConfig
from tests.kits.shell import Printed


@pytest.mark.parametrize(
    ("key", "words", "says"),
    [
        ("train.workers", (), ("one process each", "a whole number >= 1", "the declared default")),
        ("train.workers", ("train.workers=4",), ("now     4", "the command line: train.workers=4")),
        ("train.budget.lr", (), ("learning rate", "0.004", "configs/experiment/demo.yaml")),
        ("train.precision", ("experiment=toy",), ("auto, fp32, bf16", "now     fp32")),
        ("train.zero_stage", (), ("0, 1, 2, 3",)),
        ("tasks.digits.max_text", (), ("now     8", "configs/task/digits.yaml")),
        ("tasks.digits", (), ("keys    kind, data",)),
        ("method.settings.rank", (), ("bottleneck", "48", "configs/method/atlas.yaml")),
        ("store.region", (), ('"" (empty)', "the declared default")),
        ("cluster.address", ("cluster=ray",), ("now     auto", "the command line: cluster=ray")),
        ("train.budget.eps", (), ("the method's own", "the declared default")),
        ("cluster.heartbeat_ttl_s", (), ("> 0",)),
        ("raw_root", (), ("the declared default",)),
    ],
)
def test_a_key_says_what_it_is_and_who_set_it(printed: Printed, key: str, words: tuple[str, ...], says: tuple[str, ...]) -> None:
    text = printed("config", "--explain", key, *words)
    assert all(word in text for word in says), text


def test_every_declared_key_is_described() -> None:
    seen = []

    def walk(model: type, path: str) -> None:
        for name, field in model.model_fields.items():  # type: ignore[attr-defined]
            seen.append(f"{path}{name}")
            assert field.description, f"{path}{name} has no description"
            inner = field.annotation
            if isinstance(inner, type) and hasattr(inner, "model_fields"):
                walk(inner, f"{path}{name}.")

    walk(RunConfig, "")
    assert len(seen) > 60
