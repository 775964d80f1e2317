"""Part of another data set: which classes, which samples, and that splits never share one."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from atlas_dist.data.tasks import converter
from atlas_dist.errors import ConfigError, DataError

CLASSES = ("ant", "bee", "cat", "cow", "dog")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five classes, four pictures each to learn from and two to validate on, in Places365's easyformat."""
    for split, count in (("train", 4), ("val", 2)):
        lines = []
        for name in CLASSES:
            for number in range(count):
                path = tmp_path / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (4, 4), (number, 0, 0)).save(path)
                lines.append(f"{split}/{name}/{number}.png")
        (tmp_path / f"{split}.txt").write_text("\n".join(lines))
    return tmp_path


def taken(folder: Path, split: str = "train", **options: object):
    return converter("subset").run(folder, split, {"of": "places365", **options})


def test_everything_is_kept_unless_told_otherwise(folder: Path) -> None:
    whole, part = converter("places365").run(folder, "val", {}), taken(folder, "val")
    assert part.classes == whole.classes
    assert list(part.samples) == list(whole.samples)


def test_classes_are_numbered_in_the_order_in_which_they_are_named(folder: Path) -> None:
    part = taken(folder, classes=["dog", "c*"])
    assert part.classes == ("dog", "cat", "cow")
    assert {(s.images[0].split("/")[1], s.label) for s in part.samples} == {("dog", 0), ("cat", 1), ("cow", 2)}


def test_samples_are_chosen_by_the_name_of_their_picture(folder: Path) -> None:
    assert {s.images[0] for s in taken(folder, images=["*/bee/*"]).samples} == {f"train/bee/{n}.png" for n in range(4)}


def test_parts_deal_the_classes_out_without_overlap(folder: Path) -> None:
    held, rest = taken(folder, parts=3, take=[2]), taken(folder, parts=3, take=[0, 1])
    assert held.classes == ("cat",)
    assert rest.classes == ("ant", "bee", "cow", "dog")


def test_the_classes_of_each_pattern_of_pictures_are_dealt_apart(folder: Path) -> None:
    """What is held out of `c*` stays held out whatever stands in front of it: an earlier task had the other part."""
    patterns = ["*/ant/*", "*/c*/*"]
    held, rest = (taken(folder, images=patterns, parts=2, take=[part]) for part in (1, 0))
    assert held.classes == ("cow",) == taken(folder, images=patterns[1:], parts=2, take=[1]).classes
    assert rest.classes == ("ant", "cat")


def test_splits_of_ones_own_share_no_sample_and_have_the_counts_asked_for(folder: Path) -> None:
    counts = {"train": 3, "val": 2, "test": 1}
    drawn = {split: taken(folder, split, per_class=counts, classes=["ant", "bee"]) for split in counts}
    ids = [sample.id for part in drawn.values() for sample in part.samples]
    assert len(ids) == len(set(ids)) == 12
    for split, part in drawn.items():
        assert [sum(s.label == label for s in part.samples) for label in (0, 1)] == [counts[split]] * 2


def test_the_draw_depends_on_the_seed_alone(folder: Path) -> None:
    counts = {"train": 2, "val": 2}
    first, again, other = ([s.id for s in taken(folder, per_class=counts, seed=seed).samples] for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"per_class": {"train": 9}}, DataError, "has 6 samples"),
        ({"per_class": {"val": 1}}, ConfigError, "draws no split 'train'"),
        ({"classes": ["zebra"]}, DataError, "keeps no class"),
        ({"parts": 2, "take": [2]}, ConfigError, r"take is \[2\]"),
        ({"of": "toy", "options": {"task": "kin", "samples": 8, "side": 32}}, ConfigError, "of kind choice"),
        ({"of": "nobody"}, ConfigError, "nobody"),
    ],
)
def test_what_cannot_be_taken_is_said(folder: Path, options: dict[str, object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        converter("subset").run(folder, "train", {"of": "places365", **options})
