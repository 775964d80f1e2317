"""How a run stands, in words."""

from __future__ import annotations

import pytest

from atlas_dist.cli.status import pool_line
from atlas_dist.runs.heartbeat import PoolHeartbeat


@pytest.mark.parametrize(("standing", "says"), [("works", "7 of 8 workers, works"), ("", "7 of 8 workers")])
def test_a_pool_ends_with_what_it_does_where_that_is_known(standing: str, says: str) -> None:
    assert pool_line("big", PoolHeartbeat(7, 8, standing)) == f"pool big: {says}"
