"""Every original format on real records, with tiny drawn pictures where the images cannot be shipped.

The records live outside the repository; without them these tests skip and say so.
"""

from __future__ import annotations

import gzip
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from atlas_dist.core.types import TaskKind
from atlas_dist.data.images import open_rgb
from atlas_dist.data.pack import run_pack
from atlas_dist.data.stream import open_stream
from atlas_dist.data.tasks import CONVERTERS, RawSet
from atlas_dist.data.tasks.vcr import NAMES, words
from atlas_dist.data.tasks.vqav2 import normalise, soft_scores
from atlas_dist.errors import ConfigError, DataError
from tests.kits.data import letter_tokenizer, memory_store, task_of

SHARED = next((p / "shared/data" for p in Path(__file__).resolve().parents if (p / "shared/data").is_dir()), Path("/nonexistent"))
RECORDS = SHARED / "format_samples"
real = pytest.mark.skipif(
    not RECORDS.is_dir(), reason="the real records are not here: no shared/data/format_samples above the repository"
)


def listed(name: str, path: Path | None, split: str, **options: Any) -> RawSet:
    return CONVERTERS[name].run(path, split, options)


def picture(number: int, size: tuple[int, int] = (24, 18), kind: str = "JPEG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (number * 37 % 256, number * 91 % 256, 120)).save(out, kind)
    return out.getvalue()


def with_pictures(records: Path, raw: RawSet, at: Path) -> Path:
    """A copy of the records with a drawn picture for every name they mention."""
    shutil.copytree(records, at, dirs_exist_ok=True, copy_function=shutil.copyfile)
    for number, name in enumerate(dict.fromkeys(n for s in raw.samples for n in s.images)):
        (at / name).parent.mkdir(parents=True, exist_ok=True)
        (at / name).write_bytes(picture(number))
    return at


def packs_and_streams(name: str, path: Path | None, split: str, samples: int, **options: Any) -> list[dict[str, torch.Tensor]]:
    """Pack, read every sample back through the stream, return the batches."""
    store = memory_store()
    manifest = run_pack(name, path, store, name, split, options=options, image_size=16, shard_samples=16).manifest
    assert manifest.samples == samples
    with open_stream(
        store, manifest, task_of(manifest, 40), letter_tokenizer(), 16, seed=0, rank=0, world=1, global_batch=8
    ) as stream:
        batches = [{k: v.clone() for k, v in vars(b).items() if isinstance(v, torch.Tensor)} for b in stream.validation()]
        assert stream.stats().bad == ()
    assert sum(int(b["mask"].sum()) for b in batches) == samples
    return batches


@real
def test_snli_ve(tmp_path):
    raw = listed("snli_ve", RECORDS / "snli_ve", "val")
    assert raw.classes == ("entailment", "contradiction", "neutral") and len(raw.samples) == 16
    assert raw.samples[0].texts == (("A toddler sleeps outside.",),) and raw.samples[0].label == 1
    packs_and_streams("snli_ve", with_pictures(RECORDS / "snli_ve", raw, tmp_path), "val", 16)


def test_snli_ve_without_a_gold_label(tmp_path):
    line = {"Flickr30K_ID": "0012", "gold_label": "-", "sentence2": "x", "pairID": "p"}
    (tmp_path / "snli_ve_train.jsonl").write_text(json.dumps(line) + "\n" + json.dumps({**line, "gold_label": "neutral"}))
    raw = listed("snli_ve", tmp_path, "train")
    assert raw.left_out == (("p", "no gold label"),) and raw.samples[0].images == ("flickr30k_images/12.jpg",)


@real
def test_vqav2_with_the_published_answer_list(tmp_path):
    raw = listed("vqav2", RECORDS / "vqav2", "train", answers="trainval_ans2label.json")
    assert raw.kind is TaskKind.ANSWERS and len(raw.classes) == 3129
    first = {raw.classes[answer]: score for answer, score in raw.samples[0].targets.items()}
    assert first["net"] == 1.0 and set(first.values()) <= {0.3, 0.6, 0.9, 1.0}
    assert raw.samples[0].images == ("train2014/COCO_train2014_000000458752.jpg",)
    batches = packs_and_streams(
        "vqav2", with_pictures(RECORDS / "vqav2", raw, tmp_path), "train", 3, answers="trainval_ans2label.json"
    )
    assert batches[0]["targets"].shape == (8, 3129) and batches[0]["targets"].max() == 1.0


@real
def test_vqav2_builds_its_own_answer_list():
    raw = listed("vqav2", RECORDS / "vqav2", "train", list_from=["train"], min_count=1)
    assert "net" in raw.classes and "" not in raw.classes
    with pytest.raises(DataError, match="majority 9 times"):
        listed("vqav2", RECORDS / "vqav2", "train", list_from=["train"])


def test_vqa_soft_scores_and_normal_form():
    label = {"net": 0, "2": 1, "don't know": 2}
    given = ["net"] * 4 + ["a Net."] * 1 + ["two"] * 2 + ["dont know"] + ["bat"] * 2
    assert soft_scores(given, label) == {0: 1.0, 1: 0.6, 2: 0.3}
    assert [normalise(a) for a in ("Yes!", "the cat", "1.5", "10,000", "T-shirt", "none")] == [
        "yes",
        "cat",
        "1.5",
        "10000",
        "t shirt",
        "0",
    ]


@real
@pytest.mark.parametrize(("split", "count"), [("val", 50), ("test", 20)])
def test_nlvr2(tmp_path, split, count):
    raw = listed("nlvr2", RECORDS / "nlvr2", split)
    assert raw.kind is TaskKind.PAIR and len(raw.samples) == count
    assert {s.label for s in raw.samples} == {0, 1}
    assert all(left[:-5] == right[:-5] and left.endswith("img0.png") for left, right in (s.images for s in raw.samples))
    packs_and_streams("nlvr2", with_pictures(RECORDS / "nlvr2", raw, tmp_path), split, count)  # JPEG in files named .png


def test_nlvr2_numbered_folders(tmp_path):
    line = {"identifier": "train-1-2-0", "sentence": "s", "label": "True", "directory": 47}
    (tmp_path / "train.json").write_text(json.dumps(line))
    assert listed("nlvr2", tmp_path, "train").samples[0].images[1] == "images/train/47/train-1-2-img1.png"
    (tmp_path / "images/train").mkdir(parents=True)
    (tmp_path / "images/train/train-1-2-img0.png").touch()
    assert listed("nlvr2", tmp_path, "train").samples[0].images[1] == "images/train/train-1-2-img1.png"


class TestVcr:
    @real
    def test_real_records(self, tmp_path):
        raw = listed("vcr", RECORDS / "vcr", "val")
        asked, answer = raw.samples[0].texts[2]
        assert (asked, answer) == ("Does Casey live in this house?", "No, Casey is a visitor.") and raw.samples[0].label == 2
        batches = packs_and_streams("vcr", with_pictures(RECORDS / "vcr", raw, tmp_path), "val", 1)
        assert batches[0]["input_ids"].shape == (8, 4, 40) and batches[0]["pixels"].shape == (8, 1, 16, 16, 3)

    @real
    def test_boxes_are_drawn_while_packing(self, tmp_path):
        raw = listed("vcr", RECORDS / "vcr", "train")
        root = with_pictures(RECORDS / "vcr", raw, tmp_path)
        record = json.loads((root / "train.jsonl").read_text())
        still = root / "vcr1images" / record["img_fn"]
        still.write_bytes(picture(0, (320, 160)))
        facts = json.loads((RECORDS / "vcr/metadata_example.json").read_text())
        (root / "vcr1images" / record["metadata_fn"]).write_text(json.dumps(facts))
        boxed = listed("vcr", root, "train", draw_boxes=True)
        drawn = open_rgb(boxed.source.read(boxed.samples[0].images[0]))
        plain = open_rgb(still.read_bytes())
        left, top, _, bottom = (v * 320 / facts["width"] for v in facts["boxes"][2][:4])
        edge = (int(left), int((top + bottom) / 2) % 160)
        assert drawn.size == plain.size and drawn.getpixel(edge) != plain.getpixel(edge)
        packs_and_streams("vcr", root, "train", 1, draw_boxes=True)

    def test_every_index_is_named_and_things_are_things(self):
        objects = ["person", "car", "person"]
        assert (
            words(["Are", [0, 2], "near", [1], "?"], objects, "the gray {name}", "") == "Are Casey and Jessie near the gray car?"
        )
        assert words([[2], "'s", "hat", ",", 0], objects, "{name}", "") == "Jessie's hat, Casey"
        with pytest.raises(DataError, match="object"):
            words([[3]], objects, "{name}", "line 1")

    def test_more_than_fifty_people_stay_apart(self):
        objects = ["person"] * 120
        assert len({words([[i]], objects, "", "") for i in range(120)}) == 120 and len(set(NAMES)) == len(NAMES) == 50


@real
def test_piqa(tmp_path):
    raw = listed("piqa", RECORDS / "piqa", "val")
    assert raw.images == 0 and len(raw.samples) == 50 and [s.label for s in raw.samples[:4]] == [0, 1, 1, 1]
    packs_and_streams("piqa", RECORDS / "piqa", "val", 50)
    train = listed("piqa", SHARED / "piqa.zip", "train", train_from_valid=1500)
    val = listed("piqa", SHARED / "piqa.zip", "val", train_from_valid=1500)
    assert (len(train.samples), len(val.samples)) == (1500, 338)
    assert not {s.id for s in train.samples} & {s.id for s in val.samples}
    with pytest.raises(DataError, match=r"train.jsonl"):
        listed("piqa", SHARED / "piqa.zip", "train")
    shutil.copytree(RECORDS / "piqa", tmp_path, dirs_exist_ok=True, copy_function=shutil.copyfile)
    (tmp_path / "valid-labels.lst").write_text("0\n1\n")
    with pytest.raises(DataError, match="labels"):
        listed("piqa", tmp_path, "val")


@real
def test_commonsenseqa_and_trec_in_its_form():
    raw = listed("commonsenseqa", RECORDS / "commonsenseqa", "val")
    assert raw.classes == tuple("ABCDE") and raw.samples[0].texts[0][1] == "bank" and raw.samples[0].label == 0
    batches = packs_and_streams("commonsenseqa", RECORDS / "commonsenseqa", "val", 50)
    assert batches[0]["input_ids"].shape == (8, 5, 40)
    trec = listed("commonsenseqa", SHARED / "trec.zip", "train", folder="derived_commonsenseqa_format")
    assert len(trec.samples) == 5366 and trec.samples[0].texts[trec.samples[0].label][1] == "description"


@real
def test_inaturalist(tmp_path):
    raw = listed("inaturalist2019", RECORDS / "inaturalist2019", "val")
    assert len(raw.samples) == 3030 and len(raw.classes) == 1010
    body = json.loads(gzip.decompress((RECORDS / "inaturalist2019/val2019.json.gz").read_bytes()))
    body["annotations"].reverse()  # joined by id, not by position
    body["images"] = body["images"][:20]
    (tmp_path / "val2019.json").write_text(json.dumps(body))
    shuffled = listed("inaturalist2019", tmp_path, "val")
    assert [(s.id, s.label) for s in shuffled.samples] == [(s.id, s.label) for s in raw.samples[:20]]
    packs_and_streams("inaturalist2019", with_pictures(tmp_path, shuffled, tmp_path / "copy"), "val", 20)


class TestPlaces365:
    @real
    def test_file_lists(self, tmp_path):
        shutil.copyfile(RECORDS / "places365/categories_places365.txt", tmp_path / "categories_places365.txt")
        shutil.copyfile(RECORDS / "places365/places365_val.first11.txt", tmp_path / "places365_val.txt")
        (tmp_path / "places365_train_standard.txt").write_text(
            "/a/airfield/00000001.jpg 0\n/a/apartment_building/outdoor/3.jpg 8\n"
        )
        raw = listed("places365", tmp_path, "val")
        assert len(raw.classes) == 365 and raw.classes[8] == "apartment_building/outdoor"
        assert (raw.samples[0].images, raw.samples[0].label) == (("val_large/Places365_val_00000001.jpg",), 165)
        train = listed("places365", tmp_path, "train")
        assert [(s.images[0], s.label) for s in train.samples][1] == ("data_large/a/apartment_building/outdoor/3.jpg", 8)
        packs_and_streams("places365", with_pictures(tmp_path, raw, tmp_path / "copy"), "val", 11)

    def test_easyformat_labels_are_sorted_names_of_all_splits(self, tmp_path):
        (tmp_path / "train.txt").write_text("train/zoo/1.jpg\ntrain/airfield/1.jpg\ntrain/apartment/outdoor/2.jpg\n")
        (tmp_path / "val.txt").write_text("val/zoo/9.jpg\n")
        raw = listed("places365", tmp_path, "val")
        assert raw.classes == ("airfield", "apartment/outdoor", "zoo") and raw.samples[0].label == 2

    def test_a_name_that_leads_out_is_never_read(self, tmp_path):
        (tmp_path / "train.txt").write_text("train/../../../etc/passwd\n")
        with pytest.raises(DataError, match="1 of 1 records"):
            run_pack("places365", tmp_path, memory_store(), "p", "train")


@real
class TestTheSmallRealSets:
    def test_cifar10(self):
        train, val = (listed("places365", SHARED / "cifar10_12k.zip", s) for s in ("train", "val"))
        assert (len(train.samples), len(val.samples)) == (10_000, 2_000) and train.classes == val.classes
        assert train.classes[:2] == ("airplane", "automobile")

    def test_omniglot(self):
        train, val = (listed("inaturalist2019", SHARED / "omniglot_inat.zip", s) for s in ("train", "val"))
        assert (len(train.samples), len(val.samples)) == (2176, 544) and train.classes == val.classes and len(val.classes) == 136

    def test_easy_vqa_is_carved_by_image(self):
        train, val = (listed("easyvqa", SHARED / "easy_vqa_train.zip", s) for s in ("train", "val"))
        assert len(train.samples) + len(val.samples) == 38_575 and len(train.classes) == 13
        assert not {s.images for s in train.samples} & {s.images for s in val.samples}
        assert 0.08 < len(val.samples) / 38_575 < 0.12
        few = listed("easyvqa", SHARED / "easy_vqa_train.zip", "val", questions_per_image=2)
        assert len(few.samples) == 2 * len({s.images for s in val.samples})

    def test_nlvr(self):
        train, val = (listed("nlvr", SHARED / "nlvr_v1_dev_test.zip", s) for s in ("train", "val"))
        assert (len(train.samples), len(val.samples)) == (3956, 990)
        assert train.source.has(train.samples[0].images[0]) and val.source.has(val.samples[-1].images[0])


def test_easy_vqa_from_the_installed_package():
    pytest.importorskip("easy_vqa", reason="the package easy-vqa is not installed")
    train, val, test = (listed("easyvqa", None, s) for s in ("train", "val", "test"))
    assert len(train.samples) + len(val.samples) == 38_575 and len(test.samples) > 5000
    assert open_rgb(train.source.read(train.samples[0].images[0])).size == (64, 64)


class TestGeneric:
    def test_classification_from_json_lines(self, tmp_path):
        for split, labels in (("train", ["10", "9"]), ("val", ["2"])):
            lines = [
                {"id": f"{split}{i}", "text": "t", "more": "m", "image": f"{i}.jpg", "label": label}
                for i, label in enumerate(labels)
            ]
            (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
        (tmp_path / "pics").mkdir()
        for i in range(2):
            (tmp_path / f"pics/{i}.jpg").write_bytes(picture(i))
        raw = listed("classify_jsonl", tmp_path, "train", image_folder="pics", text_b="more")
        assert raw.classes == ("2", "9", "10") and raw.samples[0].label == 2 and raw.samples[0].texts == (("t", "m"),)
        packs_and_streams("classify_jsonl", tmp_path, "train", 2, image_folder="pics")
        assert listed("classify_jsonl", tmp_path, "train", image="image,image").kind is TaskKind.PAIR
        assert listed("classify_jsonl", tmp_path, "train", image="").images == 0
        with pytest.raises(DataError, match="none of"):
            listed("classify_jsonl", tmp_path, "train", classes=["9"])

    def test_choices_from_json_lines(self, tmp_path):
        lines = [{"question": "q", "choices": ["a", "b"], "answer": "b"}, {"question": "r", "choices": ["c", "d"], "answer": 0}]
        (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
        raw = listed("choice_jsonl", tmp_path, "train")
        assert [s.label for s in raw.samples] == [1, 0] and raw.samples[0].texts == (("q", "a"), ("q", "b"))
        packs_and_streams("choice_jsonl", tmp_path, "train", 2)
        with pytest.raises(DataError, match="expected 3"):
            listed("choice_jsonl", tmp_path, "train", count=3)

    def test_errors_name_file_line_and_option(self, tmp_path):
        (tmp_path / "train.jsonl").write_text('{"question": "q", "choices": ["a"], "answer": 0}\n{not json')
        with pytest.raises(DataError, match=r"train.jsonl, line 2: not JSON"):
            list(listed("choice_jsonl", tmp_path, "train").samples)
        (tmp_path / "train.jsonl").write_text('{"question": "q"}')
        with pytest.raises(DataError, match="line 1 has no field 'choices'"):
            listed("choice_jsonl", tmp_path, "train")
        with pytest.raises(ConfigError, match="count"):
            listed("choice_jsonl", tmp_path, "train", count=-1)
