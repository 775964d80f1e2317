"""What is set before Ray is imported."""

from __future__ import annotations

import os

import pytest

from atlas_dist.config import ClusterConfig
from atlas_dist.coordinator.ray_env import before_ray


def test_a_process_has_one_token_for_every_ray_that_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray reads the token once: with another one, the second Ray of a process would not let its own driver in."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of somebody else's cluster")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    before_ray(ClusterConfig())
    first = os.environ["RAY_AUTH_TOKEN"]
    before_ray(ClusterConfig())
    assert os.environ["RAY_AUTH_TOKEN"] == first != "of somebody else's cluster"
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_a_cluster_of_others_keeps_its_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    before_ray(ClusterConfig(address="auto"))
    assert "RAY_AUTH_TOKEN" not in os.environ and "RAY_AUTH_MODE" not in os.environ
