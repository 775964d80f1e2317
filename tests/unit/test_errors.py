"""The exception tree: different troubles, different exit codes, and errors that survive the trip between processes."""

from __future__ import annotations

import pickle

from atlas_dist import errors
from atlas_dist.errors import AtlasError, ConfigError


def test_exit_codes_differ_by_kind() -> None:
    kinds = AtlasError.__subclasses__()
    named = {k: k.exit_code for k in kinds if k.__module__ == errors.__name__}
    assert len(set(named.values())) == len(named)
    assert errors.FencedError.exit_code == 7


def test_errors_cross_process_borders_with_their_advice() -> None:
    back = pickle.loads(pickle.dumps(ConfigError("x is 3.", fix="Set x=2.")))
    assert (type(back), back.message, back.fix, str(back)) == (ConfigError, "x is 3.", "Set x=2.", "x is 3. Set x=2.")
