"""Where a Ray of our own keeps its sockets: below a long TMPDIR it does not start, and said nothing of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from atlas_dist.coordinator.ray_home import SOCKET_BYTES, ray_home
from atlas_dist.errors import ConfigError
from atlas_dist.store.places import can_be_written

LONG = "/scratch/" + "very-long-folder-name-" * 5


@pytest.mark.parametrize("environment", [{}, {"TMPDIR": "/scratch/a"}, {"RAY_TMPDIR": "/scratch/a", "TMPDIR": LONG}])
def test_ray_chooses_itself_where_it_can(environment: dict[str, str]) -> None:
    assert ray_home(environment, usable=lambda _: True) is None


@pytest.mark.parametrize("folder", [LONG, "/scratch/my runs", "/scratch/" + "ü" * 20])
def test_beside_a_long_tmpdir_a_short_folder_is_taken(folder: str) -> None:
    assert ray_home({"TMPDIR": folder}, usable=lambda _: True) == "/tmp/ray"
    assert ray_home({"TMPDIR": folder}, usable=lambda path: path == Path("/var/tmp")) == "/var/tmp/ray"


def test_a_tmpdir_that_cannot_be_written_is_passed_over() -> None:
    assert ray_home({"TMPDIR": "/readonly"}, usable=lambda path: path != Path("/readonly")) == "/tmp/ray"


@pytest.mark.parametrize("environment", [{"RAY_TMPDIR": LONG}, {"TMPDIR": LONG}])
def test_where_there_is_no_short_folder_the_setting_is_named(environment: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=rf"takes {SOCKET_BYTES}.*Set RAY_TMPDIR to a short folder") as caught:
        ray_home(environment, others=())
    assert next(iter(environment)) in caught.value.message


def test_what_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert can_be_written(tmp_path / "not" / "yet")
    assert not can_be_written(tmp_path / "file" / "below")
