"""How patient a coordinator is."""

from __future__ import annotations

from dataclasses import dataclass

from atlas_dist.core.schedule import DEFAULT_RULES, RetryRules
from atlas_dist.runs.heartbeat import TTL_S
from atlas_dist.store.settle import DEFAULT_PATIENCE, Patience


@dataclass(frozen=True)
class CoordinatorSettings:
    """Waiting times and retry rules; none of them is needed for safety."""

    ttl_s: float = TTL_S
    """Silence of the leader after which a follower takes over."""
    inbox_every_s: float = 2.0
    follow_every_s: float = 2.0
    rules: RetryRules = DEFAULT_RULES
    patience: Patience = DEFAULT_PATIENCE
