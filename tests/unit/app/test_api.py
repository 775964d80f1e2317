"""What the Python API takes and what it leaves alone: settings in every form mean the same, and no process is changed."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest

import atlas_dist as atlas
from atlas_dist.app.composed import compose_run, words_of
from atlas_dist.app.process import restored_process
from atlas_dist.compose import compose_config


def test_importing_is_quick_and_every_name_is_there() -> None:
    code = "import sys, atlas_dist; print(sorted({'torch', 'ray', 'hydra', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    code = (
        "import os; was = dict(os.environ); from atlas_dist import *; print(sorted(set(os.environ.items()) ^ set(was.items())))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    assert all(getattr(atlas, name) is not None for name in atlas.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = atlas.nonsense


def test_every_name_is_explained_to_python_users() -> None:
    page = (Path(__file__).parents[3] / "docs/python.md").read_text(encoding="utf-8")
    assert [name for name in atlas.__all__ if not re.search(rf"(?<!\w){name}(?!\w)", page)] == []


def test_what_imports_torch_leaves_the_process_alone(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, atlas_dist as atlas; was = dict(os.environ)\n"
        f"try: atlas.export(pathlib.Path('out'), 'store.url={tmp_path}')\n"
        "except atlas.AtlasError as error: print(error.message, sorted(set(os.environ.items()) ^ set(was.items())))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert "no run demo" in told
    assert told.endswith("[]\n")


def test_words_mappings_and_a_configuration_mean_the_same() -> None:
    words = compose_config(["experiment=toy", "train.workers=1", "seeds=[3,4]", "store.url=s3://b/p q", "track.wandb='1'"])
    tree = {"train": {"workers": 1}, "seeds": [3, 4], "store.url": "s3://b/p q", "track": {"wandb": "1"}}
    mapped = compose_run("experiment=toy", tree).config
    assert mapped == words
    assert compose_run(words).config == words
    assert compose_run({"experiment": "toy"}, {"run": "a"}, "run=b").config.run == "b", "later ones win"


@pytest.mark.parametrize(
    "text", ["true", "null", "007", "1e3", "it's", "a,b", "[x]", "{x}", "back\\slash", "end\\", "\\'", "päivä", "", " ", "a=b"]
)
def test_a_text_stays_the_text_that_it_is(text: str) -> None:
    assert compose_run({"experiment": "toy", "raw_root": text}).config.raw_root == text


def test_a_configuration_stands_alone() -> None:
    with pytest.raises(atlas.AtlasError, match="beside other settings") as refused:
        words_of(compose_config(["experiment=toy"]), "run=b")
    assert "model_copy" in refused.value.fix


def test_errors_are_ours_and_never_an_exit(tmp_path: Path) -> None:
    with pytest.raises(atlas.AtlasError, match="There is no run toy"):
        atlas.request("pause", "experiment=toy", {"store.url": str(tmp_path)})
    with pytest.raises(atlas.AtlasError) as refused:
        atlas.plan("experiment=nonsense")
    assert refused.value.exit_code == 2


def test_a_process_is_as_before_however_calls_overlap() -> None:
    before = dict(os.environ), list(warnings.filters), logging.getLogger("ray").level, list(logging.root.handlers)
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with restored_process():
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=other)
    with restored_process():
        thread.start()
        inside.wait(60)
        os.environ["ATLAS_TEST_LEFT"] = "here"
        logging.root.addHandler(logging.NullHandler())
    leave.set()
    thread.join(60)
    assert (dict(os.environ), list(warnings.filters), logging.getLogger("ray").level, list(logging.root.handlers)) == before
