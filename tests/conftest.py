"""Settings that every test needs before anything of ours is imported, and which tests share a process."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

from atlas_dist import collector

gc.disable()  # while everything is imported (atlas_dist/collector.py)

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")

# A test has to pass beside other work: no example has a deadline.
hypothesis.settings.register_profile("beside other work", deadline=None)
hypothesis.settings.load_profile("beside other work")

ROOT = Path(__file__).parents[1]


class ByFile(LoadScopeScheduling):
    """A file's tests share a worker, for they share its fixtures. What starts a Ray shares one worker too: two Rays at once leave
    neither the cores to start in time."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "ray" if starts_ray(file) else file


@cache
def starts_ray(file: str) -> bool:
    """Whether a file's tests are marked so."""
    return "pytest.mark.ray" in (ROOT / file).read_text(encoding="utf-8")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """With `-n 2`."""
    return ByFile(config, log)


def pytest_configure(config: pytest.Config) -> None:
    """Nothing that a user's cache remembers may decide a test. Workers have the environment of the process that started them."""
    if not hasattr(config, "workerinput"):
        folder = tempfile.mkdtemp(prefix="atlas-tests-")
        os.environ["XDG_CACHE_HOME"] = folder
        os.environ["ATLAS_TESTS_SHARED"] = folder  # what is learnt once for all of them (tests/kits/bank.py)
        config.add_cleanup(partial(shutil.rmtree, folder, ignore_errors=True))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts a Ray takes longest: it comes first, so that no worker is left alone with it in the end."""
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)


def pytest_collection_finish() -> None:
    """What is imported by now stays."""
    gc.enable()
    collector.freeze()
