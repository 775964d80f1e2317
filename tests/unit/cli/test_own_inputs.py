"""People's own data at the command line: each of these came out wrong once. What is right is said by the name of the test."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw

from atlas_dist.compose import compose_config
from atlas_dist.core.manifest import ShardManifest
from atlas_dist.data.decode import decode_into
from atlas_dist.data.manifest import read_manifest
from atlas_dist.store import open_store
from tests.kits.shell import Shell

SMALL = "backbone.name=random-tiny"


def picture(number: int, size: int = 24) -> Image.Image:
    image = Image.new("RGB", (size, size), "white")
    ImageDraw.Draw(image).rectangle((2, 2, 10 + number % 10, 15), fill=(number * 37 % 256, number * 91 % 256, 120))
    return image


def folder(root: str, train: int = 12, val: int = 4) -> Path:
    for split, count in (("train", train), ("val", val)):
        for k, name in enumerate(("blue", "red")):
            path = Path(root, split, name)
            path.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                picture(i + 100 * k).save(path / f"{i}.png")
    return Path(root)


def records(root: str, count: int = 40) -> list[dict[str, Any]]:
    Path(root, "pictures").mkdir(parents=True, exist_ok=True)
    for i in range(count):
        picture(i).save(Path(root, "pictures", f"{i}.png"))
    return [{"image": f"pictures/{i}.png", "text": f"this is {i % 3}", "label": "no" if i % 2 else "yes"} for i in range(count)]


def lines(path: str, rows: list[Any], encoding: str = "utf-8") -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    text = "".join((r if isinstance(r, str) else json.dumps(r, ensure_ascii=False)) + "\n" for r in rows)
    Path(path).write_bytes(text.encode(encoding))
    return Path(path)


def manifest_of(task: str, split: str = "train") -> ShardManifest:
    return read_manifest(open_store("mine-run/shards"), task, split)


def pack(shell: Shell, *words: str) -> tuple[int, str]:
    return shell("shards", "pack", "experiment=mine", SMALL, *words)


# ---------------------------------------------------------------------------------------------------------------- init


def test_init_refuses_an_experiment_named_like_ours(shell: Shell) -> None:
    folder("data/cols", 2, 2)
    code, said = shell("init", "demo", "data/cols")
    assert code == 2 and "demo" in said and "Choose another name" in said and not Path("configs").exists()


@pytest.mark.parametrize("name", ["on", "no", "null", "True", "nan", "y", "infinity"])
def test_names_that_yaml_reads_as_values_are_names(shell: Shell, name: str) -> None:
    folder(f"data/{name}", 2, 2)
    assert shell("init", name, f"data/{name}")[0] == 0
    config = compose_config([f"experiment={name}", f"tasks.{name}.max_text=9"])
    assert config.run == name and config.sequence.upstream == [name]
    assert config.tasks[name].data.dataset == name and config.tasks[name].max_text == 9


def test_a_folder_named_like_a_task_of_ours_is_the_users(shell: Shell) -> None:
    folder("data/digits", 2, 2)
    assert shell("init", "mine", "data/digits")[0] == 0
    (task,) = compose_config(["experiment=mine"]).tasks.values()
    assert task.raw is not None and task.raw.source == "data/digits"


@pytest.mark.parametrize(
    "name", ["2024 photos", "日本", "a.b-c", "with space", "_x", "Été", "it's", "50%", "a,b=c[1]", "-dash", "${x}", "#1"]
)
def test_a_folder_of_any_name_becomes_a_task_that_packs(shell: Shell, name: str) -> None:
    folder(f"data/{name}", 2, 2)
    code, said = shell("init", "mine", f"data/{name}")
    assert code == 0, said
    (task,) = compose_config(["experiment=mine"]).tasks.values()
    assert task.raw is not None and task.raw.source == f"data/{name}"
    code, said = pack(shell)
    assert code == 0 and f"packed {task.data.dataset}/train: 4 samples" in said


def test_two_folders_of_one_name_are_both_named(shell: Shell) -> None:
    for root in ("a/other", "a/cols", "b/cols"):
        folder(root, 2, 2)
    code, said = shell("init", "mine", "a/other", "a/cols", "b/cols")
    assert code == 2 and "a/cols and b/cols would both be the task cols" in said


def test_part_of_what_validates_can_score_instead(shell: Shell) -> None:
    lines("data/claims/train.jsonl", records("data/claims"))
    assert shell("init", "mine", "data/claims")[0] == 0
    share = "tasks.claims.raw.test_share=0.5"
    for named in ((), ("tasks.claims.data.test=val",), ("tasks.claims.data.test=train",)):
        code, said = pack(shell, share, *named)
        assert code == 2 and "set data.test=test" in " ".join(said.split())
    assert pack(shell, "tasks.claims.data.dataset=whole")[0] == 0
    code, said = pack(shell, share, "tasks.claims.data.test=test")
    assert code == 0 and "packed claims/test: " in said
    train, val, test = (manifest_of("claims", split).samples for split in ("train", "val", "test"))
    assert train == manifest_of("whole", "train").samples
    assert val + test == manifest_of("whole", "val").samples and min(val, test) > 0


def test_init_leaves_a_users_files_as_they_are_and_reads_a_mended_one(shell: Shell) -> None:
    rows = records("data/claims")
    file = lines("data/claims/train.jsonl", rows)
    before = file.read_bytes()
    assert shell("init", "mine", "data/claims")[0] == 0
    assert file.read_bytes() == before and sorted(p.name for p in Path("data/claims").iterdir()) == ["pictures", "train.jsonl"]
    lines("data/other/all.jsonl", ["{bad", *records("data/other")])
    code, said = shell("init", "second", "data/other")
    assert (
        code == 3 and "all.jsonl, line 1" in said and sorted(p.name for p in Path("data/other").glob("*.jsonl")) == ["all.jsonl"]
    )
    lines("data/other/all.jsonl", records("data/other"))
    code, said = shell("init", "second", "data/other")
    assert code == 0 and "of the 40 records of all.jsonl are held out" in said


@pytest.mark.parametrize("end", ["csv", "tsv", "parquet"])
def test_init_and_pack_take_tables(shell: Shell, end: str) -> None:
    rows = records("data/claims")
    if end == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), "data/claims/all.parquet")
    else:
        mark = "," if end == "csv" else "\t"
        Path(f"data/claims/all.{end}").write_text("\n".join(mark.join(r.values()) for r in ({k: k for k in rows[0]}, *rows)))
    assert shell("init", "mine", "data/claims")[0] == 0
    code, said = pack(shell)
    assert code == 0, said
    assert sum(manifest_of("claims", split).samples for split in ("train", "val")) == 40
    assert manifest_of("claims").classes == ("no", "yes")


@pytest.mark.parametrize(
    ("spoil", "encoding", "code", "said"),
    [
        ({3: {"text": "\u00e9t\u00e9"}}, "latin-1", 3, "train.jsonl, line 4"),
        ({}, "utf-8-sig", 0, "wrote"),
        ({}, "utf-16", 0, "wrote"),
        ({5: {"text": None}}, "utf-8", 3, "train.jsonl, line 6: 'text' is null"),
        ({6: {"label": None}}, "utf-8", 3, "train.jsonl, line 7: 'label' is null"),
        ({7: {"label": float("nan")}}, "utf-8", 3, "train.jsonl, line 8"),
        ({8: {"label": True}}, "utf-8", 3, "train.jsonl, line 9"),
        ({9: "{bad"}, "utf-8", 3, "train.jsonl, line 10"),
        ({9: "\n\n\n{bad"}, "utf-8", 3, "train.jsonl, line 13"),
        ({25: {"label": None}}, "utf-8", 3, "train.jsonl, line 26"),
    ],
)
def test_init_reads_records_as_editors_show_them(
    shell: Shell, spoil: dict[int, Any], encoding: str, code: int, said: str
) -> None:
    rows: list[Any] = records("data/claims")
    for at, change in spoil.items():
        rows[at] = change if isinstance(change, str) else {**rows[at], **change}
    lines("data/claims/train.jsonl", rows[:30], encoding)
    lines("data/claims/val.jsonl", rows[30:], encoding)
    got, printed = shell("init", "mine", "data/claims")
    assert got == code and said in printed
    if code == 0:
        assert pack(shell)[0] == 0
        assert manifest_of("claims").samples == 30 and manifest_of("claims").classes == ("no", "yes")


# ---------------------------------------------------------------------------------------------------------------- pack


def test_what_a_fix_names_can_be_given_on_the_command_line(shell: Shell) -> None:
    root = folder("data/colours")
    shell("init", "mine", "data/colours")
    assert pack(shell)[0] == 0
    picture(5).save(root / "train/red/new.png")
    code, said = pack(shell)
    assert code == 3 and "pack.overwrite=true" in said
    code, said = pack(shell, "pack.overwrite=true")
    assert code == 0 and manifest_of("colours").samples == 25
    for file in (root / "train/red").iterdir():
        picture(77).save(file)
    code, said = pack(shell)
    assert code == 3 and "13 pictures of colours/train have changed" in said


def test_pack_ends_with_what_was_left_out_by_reason(shell: Shell) -> None:
    root = folder("data/colours")
    for i in range(6):
        picture(i).save(root / f"train/red/w{i}.webp")
    (root / "train/red/notes.txt").write_text("mine")
    (root / "train/red/cut.png").write_bytes((root / "train/red/0.png").read_bytes()[:60])
    (root / "train/red/.DS_Store").write_text("x")
    shell("init", "mine", "data/colours")
    code, said = pack(shell)
    assert (
        code == 3 and "2 of 32 records cannot be used" in said and "train/red/notes.txt" in said and "pack.max_bad=0.063" in said
    )
    for key in ("pack.max_bad", "pack.max_unreadable"):
        code, said = pack(shell, f"{key}=0.063", "pack.overwrite=true")
        assert code == 0 and "30 samples" in said, said
    assert "left out 1: damaged picture" in said or "shards were there" in said
    assert "left out 1: not a picture that is read\n    train/red/notes.txt: it is neither" in said


def test_an_unlearnt_class_is_said_and_folders_beside_make_none(shell: Shell) -> None:
    root = folder("data/colours")
    (root / "val/green").mkdir()
    picture(1).save(root / "val/green/0.png")
    (root / "test/images").mkdir(parents=True)
    picture(1).save(root / "test/images/0.png")
    shell("init", "mine", "data/colours")
    code, said = pack(shell)
    assert code == 0 and "note: no training sample of 1 of 3 classes: green" in said
    assert manifest_of("colours").classes == ("blue", "green", "red")


def test_a_class_folder_that_is_a_link_is_named(shell: Shell) -> None:
    root = folder("data/colours")
    (root / "train/blue").rename("elsewhere")
    (root / "train/blue").symlink_to(Path("elsewhere").absolute())
    code, said = shell("init", "mine", "data/colours")
    assert code == 3 and "data/colours/train/blue is a link to" in said


def test_missing_pictures_empty_and_long_texts_are_counted(shell: Shell) -> None:
    rows = records("data/claims", 240)
    rows[3]["image"] = "pictures/none.png"
    rows[4]["image"] = "https://example.org/x.png"
    rows[5]["text"] = ""
    rows[6]["text"] = "word " * 200
    rows[7]["id"] = rows[8]["id"] = "same"
    lines("data/claims/train.jsonl", rows[:230])
    lines("data/claims/val.jsonl", rows[230:])
    assert shell("init", "mine", "data/claims")[0] == 0
    code, said = pack(shell)
    assert code == 0, said
    flat = " ".join(said.split())
    assert "228 samples" in flat and "left out 1: a URL, not a file" in flat and "left out 1: missing file train-3" in flat
    assert "1 of 230 records have a text of more tokens than max_text" in flat
    assert "1 records have an empty text" in flat and "1 ids stand more than once (first: same)" in flat


def test_a_photo_is_seen_as_a_viewer_turns_it(shell: Shell) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for split in ("train", "val"):
        for name, box in (("top", (0, 0, 47, 20)), ("bottom", (0, 27, 47, 47))):
            path = Path("data/photos", split, name)
            path.mkdir(parents=True)
            for i in range(3):
                image = Image.new("RGB", (48, 48), "white")
                ImageDraw.Draw(image).rectangle(box, fill="black")
                image.transpose(Image.Transpose.ROTATE_90).save(path / f"{i}.jpg", exif=exif)
    shell("init", "mine", "data/photos")
    assert pack(shell)[0] == 0
    out = np.zeros((64, 64, 3), np.uint8)
    with tarfile.open("mine-run/shards/photos/train/000000.tar") as tar:
        for name in {n.partition(".")[0] for n in tar.getnames()}:
            label = json.load(tar.extractfile(f"{name}.json"))["label"]  # type: ignore[arg-type]
            decode_into(memoryview(tar.extractfile(f"{name}.jpg").read()), out)  # type: ignore[union-attr]
            upper, lower, left, right = (int(h.mean()) for h in (out[:32], out[32:], out[:, :32], out[:, 32:]))
            assert (upper < lower) == (manifest_of("photos").classes[label] == "top") and abs(left - right) < 5


def test_a_jpeg_that_pack_takes_verify_takes(shell: Shell) -> None:
    for split in ("train", "val"):
        for name in ("blue", "red"):
            path = Path("data/scans", split, name)
            path.mkdir(parents=True)
            for i in range(3):
                out = io.BytesIO()
                picture(i).save(out, "JPEG", quality=92)
                data = out.getvalue()
                at = data.find(b"\xff\xdb")
                (path / f"{i}.jpg").write_bytes(data[:at] + bytes(3) + data[at:])
    shell("init", "mine", "data/scans")
    assert pack(shell)[0] == 0
    code, said = shell("shards", "verify", "experiment=mine", SMALL)
    assert code == 0 and said.count("whole") == 2


@pytest.mark.parametrize(("choices", "answer", "right"), [([10, 20, 30], 10, 0), (["no", "off", "1"], "off", 1)])
def test_choices_that_are_numbers(shell: Shell, choices: list[Any], answer: Any, right: int) -> None:
    rows = [{"question": "how old", "choices": choices, "answer": answer} for _ in range(20)]
    lines("data/age/train.jsonl", rows)
    lines("data/age/val.jsonl", rows)
    assert shell("init", "mine", "data/age")[0] == 0
    assert pack(shell)[0] == 0
    labels = manifest_of("age").labels()
    assert labels is not None and set(labels.tolist()) == {right}


def test_an_answer_that_could_be_two_choices_says_how_to_say_which(shell: Shell) -> None:
    rows = [{"question": "how many legs", "choices": [2, 1, 0], "answer": 2} for _ in range(20)]
    lines("data/legs/train.jsonl", rows)
    lines("data/legs/val.jsonl", rows)
    code, said = shell("init", "mine", "data/legs")
    assert code == 3 and "answer 2 of [2, 1, 0]" in said and "answer_is" in said


# --------------------------------------------------------------------------------------------------------------- index


def test_index_says_what_it_found_and_what_it_left_out(shell: Shell) -> None:
    for split in ("train", "val"):
        Path(f"shards/few/{split}").mkdir(parents=True)
        with tarfile.open(f"shards/few/{split}/0.tar", "w") as tar:
            for i in range(20):
                out = io.BytesIO()
                picture(i).save(out, "PNG")
                for end, content in (("png", out.getvalue()), ("cls", b"%d" % (i % 2)), ("npy", b"x")):
                    if end != "cls" or i % 5:
                        info = tarfile.TarInfo(f"{i:04d}.{end}")
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))
    code, said = shell("shards", "index", "few", "train", "shards.url=shards")
    assert code == 0 and "20 samples in 1 shards, 2 classes, 1 images a sample" in said
    assert "left out 20: members ending in .npy" in said and "0.tar: 0000.npy" in said
    assert "note: 4 of 20 samples have no label (first: 0000); training masks them" in said
    shell("shards", "index", "few", "val", "shards.url=shards")
    task = "tasks: {t: {kind: single, data: {dataset: few}, max_text: 8}}\nsequence: {upstream: [t], downstream: []}\n"
    experiment = "defaults:\n  - override /sequence: mine\nshards: {url: shards}\n"
    for group, text in (("sequence", task), ("experiment", experiment)):
        Path("configs", group).mkdir(parents=True)
        Path("configs", group, "mine.yaml").write_text(f"# @package _global_\n{text}")
    code, said = shell("shards", "verify", "experiment=mine")
    assert code == 0 and "few/train: whole" in said and "note: 4 samples have no label" in said


def test_configs_that_init_wrote_are_plain_yaml(shell: Shell) -> None:
    folder("data/on the road", 2, 2)
    assert shell("init", "mine", "data/on the road")[0] == 0
    tree = yaml.safe_load(Path("configs/task/on_the_road.yaml").read_text(encoding="utf-8"))
    assert tree["raw"]["source"] == "data/on the road" and os.listdir("configs/sequence") == ["mine.yaml"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (("train.jsonl.gz", "val.jsonl.gz"), "decompress train.jsonl.gz, val.jsonl.gz first"),
        (("tables/train.parquet",), "there is tables/train.parquet: give that folder"),
        (("train.xlsx",), "save train.xlsx as CSV or Parquet"),
    ],
)
def test_init_says_what_a_folder_has_in_the_place_of_records(shell: Shell, files: tuple[str, ...], said: str) -> None:
    for name in files:
        Path("own", name).parent.mkdir(parents=True, exist_ok=True)
        Path("own", name).write_bytes(b"x")
    code, text = shell("init", "mine", "own")
    assert code == 3 and said in " ".join(text.split()), text


def test_init_and_pack_take_arrays_and_capitals(shell: Shell) -> None:
    rows = [{"text": f"t {i}", "label": "ab"[i % 2]} for i in range(8)]
    for folder, name in (("arrays", "{}.json"), ("capitals", "{}.JSONL")):
        Path(folder).mkdir()
        Path(folder, "package.json").write_text("[]")
        for split in ("train", "val"):
            Path(folder, name.format(split)).write_text(json.dumps(rows, indent=1))
        code, text = shell("init", f"of_{folder}", folder)
        assert code == 0, text
        code, text = shell("shards", "pack", f"experiment=of_{folder}", SMALL)
        assert code == 0 and f"{folder}/train" in text, text


def test_raw_data_may_lie_at_home_and_not_at_an_address(shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder("data/one")
    assert shell("init", "mine", "data/one")[0] == 0
    monkeypatch.setenv("HOME", str(tmp_path / "data"))
    code, said = pack(shell, "tasks.one.raw.source=~/one")
    assert code == 0, said
    code, said = pack(shell, "tasks.one.raw.source=https://example.org/one.zip")
    assert code == 3 and "https://example.org/one.zip is a URL" in " ".join(said.split())
