"""TAB in a shell: what is offered for words of the configuration, over the protocol that the shells' own scripts speak."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kits.shell import Command


def offered(atlas: Command, monkeypatch: pytest.MonkeyPatch, *words: str) -> list[str]:
    """What bash is told to offer with the cursor at the end of the last word."""
    monkeypatch.setenv("_ATLAS_DIST_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "\n".join(["atlas-dist", *words]))
    monkeypatch.setenv("COMP_CWORD", str(len(words)))
    return atlas().out.split()


@pytest.mark.parametrize(
    ("words", "some"),
    [
        (("run", ""), ["experiment=", "train.", "run=", "store=", "store."]),
        (("run", "exp"), ["experiment=demo", "experiment=toy"]),
        (("run", "experiment", "="), ["demo", "toy"]),
        (("run", "experiment", "=", "de"), ["demo"]),
        (("run", "experiment=de"), ["experiment=demo"]),
        (("plan", "experiment=toy", "train.pre"), [f"train.precision={word}" for word in ("auto", "fp32", "bf16")]),
        (("run", "train.zero_stage", "="), ["0", "1", "2", "3"]),
        (("run", "train.compile="), ["train.compile=true", "train.compile=false"]),
        (("run", "train.workers"), ["train.workers=2", "train.workers="]),
        (("run", "references.al"), ["references.alone.name=", "references.alone.settings="]),
        (("run", "tasks.digits"), ["tasks.digits.max_text=", "tasks.digits.budget."]),
        (("run", "method.settings.ra"), ["method.settings.rank="]),
        (("bank", "show", "digits", "cluster.add"), ["cluster.address=local", "cluster.address="]),
        (("compare", "a", "b", "store=l"), ["store=local"]),
        (("config", "--explain", "train.eval"), ["train.eval_batch"]),
    ],
)
def test_keys_groups_and_values_are_offered(
    atlas: Command, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], some: list[str]
) -> None:
    got = offered(atlas, monkeypatch, *words)
    assert set(some) <= set(got)
    assert all(word.startswith(words[-1].strip("=")) for word in got) or words[-2] == "="


@pytest.mark.parametrize("words", [("run", "nonsense"), ("run", "train.workrs="), ("run", "train.workers.x"), ("run", "task")])
def test_what_is_no_setting_is_not_offered(atlas: Command, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]) -> None:
    assert [w for w in offered(atlas, monkeypatch, *words) if not w.startswith("tasks.")] == []


def test_ones_own_experiments_are_offered(atlas: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "configs" / "experiment").mkdir(parents=True)
    (tmp_path / "configs" / "experiment" / "mine.yaml").write_text("run: mine\n")
    assert offered(atlas, monkeypatch, "run", "experiment=mi") == ["experiment=mine"]


def test_nobody_waits_for_what_computes_or_composes() -> None:
    """Every TAB starts the program anew."""
    asking = {"_ATLAS_DIST_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "atlas-dist run train.prec"}
    code = (
        "import sys\nsys.argv = ['atlas-dist']\nfrom atlas_dist.cli import main\n"
        "try:\n    main()\nfinally:\n    print(sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | asking, capture_output=True, text=True, check=False)
    assert '"train.precision=bf16"' in done.stdout, done.stderr
    assert "'atlas_dist'" in done.stderr
    assert not [name for name in ("torch", "ray", "hydra", "numpy", "boto3", "matplotlib") if f"'{name}'" in done.stderr]
