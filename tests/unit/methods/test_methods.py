"""Methods are data: their stages, their settings, and what is refused."""

from __future__ import annotations

import pytest

from atlas_dist.core.types import Role, View
from atlas_dist.errors import ConfigError
from atlas_dist.methods import METHODS, make_method
from atlas_dist.model.mixing_spec import Weighting


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_defaults_that_are_part_of_its_identity(name: str) -> None:
    method = make_method(name, {})
    assert method.spec.name == name
    assert method.spec.stages
    assert Role.HEAD in method.spec.stages[-1].trains, "what a task is in the end has a head that fits it"
    assert make_method(name, method.spec.settings) == method, "a job's own settings are enough to build its method again"
    assert method.spec.reads is (View.LATEST if Role.BACKBONE in method.spec.stages[-1].trains else View.TASK)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_registered_with_the_settings_that_it_checks(name: str) -> None:
    declared = METHODS[name].settings
    assert make_method(name, {}).spec.settings == declared().in_job_key()


def test_atlas_as_published() -> None:
    one, two = make_method("atlas_paper", {}).spec.stages
    assert (one.trains, one.grows, one.sees_earlier, one.needs_earlier) == ((Role.QUERIES, Role.HEAD), False, True, True)
    assert (two.trains, two.grows, two.sees_earlier) == ((Role.ADAPTER, Role.HEAD), True, True)
    method = make_method("atlas_paper", {})
    assert (method.mixing.rank, method.mixing.weighting, method.penalty_weight) == (48, Weighting.WHOLE, 0.1)


@pytest.mark.parametrize(
    ("settings", "trains"),
    [
        ({}, True),
        ({"stage_two_start": "nothing"}, False),
        ({"stage_two_start": "nothing", "stage_two_coefficient_lr": 0.01}, True),
    ],
)
def test_a_rate_of_coefficients_in_stage_two_counts_wherever_it_starts(settings: dict[str, object], trains: bool) -> None:
    _, two = make_method("atlas", settings).spec.stages
    assert (Role.COEFFICIENTS in two.trains) == trains


def test_a_setting_that_changes_is_a_setting_of_every_key() -> None:
    assert make_method("atlas_paper", {"rank": 8}).spec.settings["rank"] == 8


@pytest.mark.parametrize(
    ("name", "settings", "cause"),
    [
        ("atlos", {}, "Choose one of: atlas"),
        ("atlas_paper", {"weigthing": "whole"}, "did you mean weighting"),
        ("atlas_paper", {"weighting": "total"}, "'whole', 'dimension' or 'plain' .it is 'total'."),
        ("atlas_paper", {"rank": 0}, "method.settings.rank"),
        ("head_only", {"rank": 4}, "head_only has no such setting"),
    ],
)
def test_wrong_settings_are_refused(name: str, settings: dict[str, object], cause: str) -> None:
    with pytest.raises(ConfigError, match=cause):
        make_method(name, settings)
