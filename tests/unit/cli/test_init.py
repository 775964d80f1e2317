"""`init`: an experiment for data that its user has."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from atlas_dist.choices import groups
from atlas_dist.compose import compose_config
from atlas_dist.core.types import TaskKind
from tests.kits.shell import Printed


def _folder_of_classes(root: Path) -> None:
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            for number in range(6):
                path = root / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8)).save(path)


def _lines(root: Path, record: dict[str, object], count: int = 40) -> None:
    (root / "images").mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (8, 8)).save(root / "images" / f"{number}.png")
    rows = [{k: v.format(n=n) if isinstance(v, str) else v for k, v in record.items()} for n in range(count)]
    (root / "all.jsonl").write_text("\n".join(map(json.dumps, rows)))


def test_init_writes_an_experiment_that_composes_and_packs(printed: Printed, tmp_path: Path) -> None:
    _folder_of_classes(tmp_path / "data" / "pets")
    image = "images/{n}.png"
    _lines(tmp_path / "data" / "claims", {"image": image, "text": "is it so", "label": 1})
    _lines(tmp_path / "data" / "quiz", {"question": "why {n}?", "choices": ["a", "b", "c"], "answer": 2})
    _lines(tmp_path / "data" / "twins", {"left": image, "right": image, "text": "both", "label": "no"})
    names = ("pets", "claims", "quiz", "twins")
    text = printed("init", "mine", *(f"data/{name}" for name in names))
    assert "atlas-dist run experiment=mine" in text
    assert "mine" in groups()["experiment"]
    config = compose_config(["experiment=mine"])
    assert config.sequence.upstream == list(names)
    kinds = {name: task.kind for name, task in config.tasks.items()}
    assert kinds == dict(zip(names, (TaskKind.SINGLE, TaskKind.SINGLE, TaskKind.CHOICE, TaskKind.PAIR), strict=True))
    packed = printed("shards", "pack", "experiment=mine")
    assert "packed pets/train: 12 samples, 2 classes" in packed
    kept = [int(n) for n in re.findall(r"packed claims/(?:train|val): (\d+) samples", packed)]
    assert sum(kept) == 40
    assert 2 <= kept[1] <= 16
    assert [f.name for f in (tmp_path / "data" / "claims").glob("*.jsonl")] == ["all.jsonl"], "the data are left as they are"
    assert str(tmp_path) in printed("config", "--explain", "run", "experiment=mine"), "one's own file is named as the source"


def test_init_does_not_overwrite_and_refuses_what_it_cannot_read(printed: Printed, tmp_path: Path) -> None:
    _folder_of_classes(tmp_path / "pets")
    printed("init", "mine", "pets")
    with pytest.raises(AssertionError, match="exists already"):
        printed("init", "mine", "pets")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "train.jsonl").write_text('{"picture": "x.jpg"}\n')
    (tmp_path / "odd" / "val.jsonl").write_text('{"picture": "x.jpg"}\n')
    with pytest.raises(AssertionError, match="has the fields picture"):
        printed("init", "other", "odd")
