"""Commands that read a store: what they print, and that programs can read it too."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from atlas_dist.app.composed import ComposedRun
from atlas_dist.app.predict import read_requests
from atlas_dist.app.status import _pools
from atlas_dist.clock import SystemClock
from atlas_dist.compose import compose_rows
from atlas_dist.runs.heartbeat import Heartbeat, HeartbeatWriter, PoolHeartbeat, read_heartbeat
from atlas_dist.runs.stores import open_run_store
from atlas_dist.store.local import LocalStore
from atlas_dist.store.objects import MemoryStore
from tests.chaos.judge import judge, objects_of
from tests.kits.bank import copied, toys, write_ledger
from tests.kits.pages import check_page
from tests.kits.shell import Command, Printed
from tests.unit.coordinator.test_collect import crashed_before_cleaning
from tests.unit.coordinator.test_coordinator import World

# ------------------------------------------------------------------------------------------------------------ the store


def test_status_tells_people_and_programs(printed: Printed) -> None:
    words = toys().words
    text = printed("status", *words)
    assert "run toy: complete" in text
    assert "toy_pair: evaluated" in text
    about = json.loads(printed("status", "--json", "--watch", *words))
    assert (about["phase"], about["committed"]) == ("complete", about["total"])
    assert {job["state"] for job in about["jobs"]} == {"committed"}
    assert all(job["score"] is not None for job in about["jobs"])


def test_status_tells_of_the_pools_of_a_living_run() -> None:
    store = MemoryStore("s")
    heartbeat = HeartbeatWriter(store, "r", "w", SystemClock())
    assert _pools(read_heartbeat(store, "r", 2)) == {}
    pools = {"big": PoolHeartbeat(7, 8, "works"), "small": PoolHeartbeat(1, 1, "idle")}
    heartbeat.beat(2, {"a1": (3, 9)}, pools=pools)
    beat = read_heartbeat(store, "r", 2)
    assert beat is not None and beat.running == {"a1": (3, 9)}
    assert _pools(beat) == pools
    older = {"epoch": 2, "writer": "w", "beat": 1, "released": False, "running": {}}
    assert _pools(Heartbeat.from_json(older)) == {}, "a leader of an older version says nothing of pools"
    heartbeat.beat(2, {}, pools=pools, released=True)
    assert _pools(read_heartbeat(store, "r", 2)) == {}


def test_plan_tells_facts_from_work_and_what_the_work_costs(printed: Printed) -> None:
    words = toys().words
    count = len(toys().plan_keys)
    assert f"{count} jobs" in printed("plan", *words)
    assert "nothing to do" in printed("plan", *words)
    adopted = json.loads(printed("plan", "--json", "run=other", *words))
    assert adopted["left"] == 0
    assert {job["standing"] for job in adopted["jobs"]} == {"fact of toy"}
    anew = printed("plan", "run=third", "seeds=[7]", *words)
    assert f"{count} to do" in anew
    assert "at the pace of this store's finished jobs" in anew, "of another run, on the same backbone"
    assert "memory of a worker: " in printed("plan", "--memory", *words) and "memory of a worker" not in anew
    steps = json.loads(printed("plan", "--memory", "--json", *words))["memory"]
    assert steps and all(step["total"] == step["weights"] + step["optimizer"] + step["activations"] > 0 for step in steps)
    bf16 = printed("plan", "run=third", "seeds=[7]", *words, "train.precision=bf16")
    assert "no finished job in this store" in bf16
    half = json.loads(printed("plan", "--json", "run=fourth", "seeds=[0,7]", *words))
    assert half["left"] == count
    least, most = half["seconds"]
    assert 0 < least <= most
    trained = next(job for job in half["jobs"] if job["standing"] == "to do" and "stage2" in job["label"])
    assert trained["samples"] == 8 * 32
    assert "shared by 2 orders" in printed("plan", "run=fifth", "sequence.orders=[[toy_shape,toy_ask]]", *words)


def test_plan_names_jobs_that_select(printed: Printed) -> None:
    told = printed("plan", "run=forms", *(word for word in toys().words if not word.startswith("method=")), "method=atlas")
    for name in ("stage1", "stage2", "select", "score toy_shape (task view)"):
        assert re.search(rf"─ {re.escape(name)} +to do", told), name
    assert "( view)" not in told


def test_logs_are_the_ledger_in_words(printed: Printed) -> None:
    words = toys().words
    lines = printed("logs", *words).splitlines()
    assert len(lines) == 2 * len(toys().bench.done) + 3
    assert "begin" in lines[0]
    assert "toy_shape stage2  score" in lines[3]
    assert "finish" in lines[-1]
    assert len(printed("logs", "-n", "2", *words).splitlines()) == 2
    entries = [json.loads(line) for line in printed("logs", "--json", *words).splitlines()]
    assert [entry["seq"] for entry in entries] == list(range(len(entries)))


def test_bank_commands_tell_what_was_learnt(printed: Printed, tmp_path: Path) -> None:
    words = toys().words
    listed = json.loads(printed("bank", "ls", "--json", *words))
    assert [e["task"] for e in listed] == ["toy_shape", "toy_kin", "toy_ask", "toy_pair"]
    assert "draws on: toy_shape\n" in printed("bank", "show", "toy_kin", *words)
    assert "toy_ask on toy_shape + toy_kin" in printed("bank", "log", *words)
    assert "toy_kin: the same job, every byte equal" in printed("bank", "diff", "toy", "toy", *words)
    assert "all whole" in printed("bank", "verify", *words)
    assert "toy_kin" in printed("bank", "verify", "--rescore", "--task", "toy_kin", *words)
    printed("bank", "export", str(tmp_path / "out"), "--task", "toy_kin", *words)
    store = f"store.url={tmp_path}/other"
    assert "run taken" in printed("bank", "import", str(tmp_path / "out"), "--as", "taken", store)
    assert "toy_kin" in printed("bank", "ls", store, "run=taken")


def test_gc_says_what_it_would_free_and_frees_it_only_when_told(printed: Printed, tmp_path: Path) -> None:
    world = World()
    world.store = LocalStore(tmp_path / "store")  # type: ignore[assignment]
    crashed_before_cleaning(world)
    words = (f"store.url={tmp_path}/store", "run=r")
    before = objects_of(world.store)
    text = printed("bank", "gc", *words)
    assert "checkpoints of an attempt that is committed" in text
    assert "Nothing was deleted; --yes does it." in text
    assert objects_of(world.store) == before
    assert json.loads(printed("bank", "gc", "--json", *words))["garbage"]
    world.store.put("runs/r/attempts/mine/notes.txt", b"keep me")
    text = printed("bank", "gc", "--yes", *words)
    assert text.count("freed") >= 3
    assert "no record speaks of" in text
    assert not [key for key in objects_of(world.store) if "/checkpoints/" in key]
    assert "nothing to free" in printed("bank", "gc", *words)
    judge(world.store, {"r": len(world.plan.jobs)})


def test_prune_writes_a_smaller_bank_that_predict_and_verify_read(printed: Printed, tmp_path: Path) -> None:
    words = toys().words
    text = printed("bank", "prune", "small", "--budget", "6", "--worst", "20", *words)
    assert "the whole bank: 4 adapters" in text
    assert "scores from the ledger" in text
    assert "pruned of the adapters of" in printed("bank", "verify", "--from", "small", *words)
    text = printed("bank", "verify", "--from", "small", "--rescore", "--task", "toy_kin", *words)
    assert "what pruning measured" in text
    assert ": reproduced" in text
    assert printed("predict", "--from", "small", "--task", "toy_kin", "--text", "what?", *(f"--choice={c}" for c in "abc"))


def test_compare_puts_runs_of_several_stores_on_one_page(printed: Printed, tmp_path: Path) -> None:
    words = toys().words
    copied(toys(), tmp_path)
    text = printed("compare", "toy", f"{tmp_path}/toys/store#", *words, "--out", "page")
    assert "0 settings differ" in text
    page = (tmp_path / "page" / "index.html").read_text()
    check_page(page)
    assert f"{tmp_path}/toys/store#: task view" in page, "runs of one name are told apart by their stores"


def test_predict_answers_from_the_store_and_from_lines(printed: Printed, tmp_path: Path) -> None:
    words = toys().words
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    answer = json.loads(printed("predict", "--task", "toy_shape", "--image", "red.png", "--json", "--coefficients", *words))
    assert answer["answer"] in {f"{c} {s}" for c in ("red", "green", "blue", "yellow") for s in ("circle", "square", "triangle")}
    assert list(answer["adapter_coefficients"]) == ["toy_shape"]
    requests = [
        {"task": "toy_kin", "text": "what?", "choices": ["a", "b", "c"]},
        {"task": "toy_shape", "image": "red.png"},
        {"task": "toy_pair", "image": ["red.png", "red.png"], "text": "the same"},
    ]
    (tmp_path / "ask.jsonl").write_text("\n".join(map(json.dumps, requests)))
    answers = [json.loads(line) for line in printed("predict", "--jsonl", "ask.jsonl", *words).splitlines()]
    assert [a["task"] for a in answers] == ["toy_kin", "toy_shape", "toy_pair"]
    assert answers[0]["answer"] in "abc"
    assert answers[1]["index"] == answer["index"]
    table = 'task,text,choices,image\ntoy_kin,what?,"[""a"", ""b"", ""c""]",\ntoy_shape,,,red.png\n'
    (tmp_path / "ask.csv").write_text(table, encoding="utf-16")
    assert [json.loads(line)["task"] for line in printed("predict", "--jsonl", "ask.csv", *words).splitlines()] == [
        "toy_kin",
        "toy_shape",
    ]
    (tmp_path / "none.jsonl").write_text("\n")
    assert printed("predict", "--jsonl", "none.jsonl", *words) == ""
    human = printed("predict", "--task", "toy_kin", "--text", "what?", *(f"--choice={c}" for c in "abc"), *words)
    assert "%)" in human.splitlines()[0]


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ({"task": "toy_shape", "image": "red.png", "text": 5}, 0, ""),
        ({"task": "toy_kin", "text": "which", "choices": [1, 2, 3]}, 0, ""),
        ({"task": "toy_shape", "image": "red.png", "text": None}, 0, ""),
        ({"task": "toy_shape", "image": "red.png", "text": True}, 3, "line 2: 'text' is true"),
        ({"task": "toy_kin", "text": "which", "choices": "abc"}, 3, "line 2: 'choices' is 'abc'"),
        ({"task": "toy_kin", "text": "which", "choices": ["a", None, "c"]}, 3, "line 2: 'choices' is"),
        ({"task": "toy_shape", "image": 5}, 3, "line 2: 'image' is 5"),
        ({"task": "toy_shape", "image": ["red.png", None]}, 3, "line 2: 'image' is"),
        ({"task": 5, "image": "red.png"}, 3, "line 2: 'task' is 5"),
        ({"image": "red.png"}, 2, "No task is named, and this bank cannot find it"),
        ({"task": "toy_shape", "picture": "red.png"}, 3, "line 2: it is not a request: it has the fields picture"),
        ({"task": "toy_shape", "image": "https://example.org/x.png"}, 3, "line 2: https://example.org/x.png is a URL"),
        ({"task": "toy_shape", "image": "gone.png"}, 3, "line 2: Cannot read the picture gone.png"),
        ({"task": "toy_ask", "image": "red.png"}, 3, "line 2: toy_ask answers questions; no text"),
        ("{bad", 3, "line 2: not JSON (column 2"),
    ],
)
def test_predict_takes_values_as_their_text_or_names_line_and_field(
    atlas: Command, tmp_path: Path, line: object, code: int, said: str
) -> None:
    words = toys().words
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    (tmp_path / "ask.jsonl").write_text("\n" + (line if isinstance(line, str) else json.dumps(line)) + "\n")
    got = atlas("predict", "--jsonl", "ask.jsonl", *words)
    assert got.code == code and said in got.err, got.err
    assert len(got.out.splitlines()) == (code == 0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--task", "toy_shape", "--image", "folder"), "the picture folder: it is a folder"),
        (("--task", "toy_shape", "--image", "gone.png"), "the picture gone.png: it is a link to a file that is not there"),
        (("--task", "toy_shape", "--image", "x" * 300), "File name too long"),
        (("--task", "toy_ask", "--image", "red.png", "--text", "caf\udce9"), "is not Unicode"),
        (("--task", "toy_ask", "--image", "red.png", "--text", " "), "no text was given"),
        (("--task", "toy_shape", "--image", "red.png", "--from", "red.png"), "red.png is a file, and no exported bank"),
        (("--jsonl", "https://example.org/ask.jsonl"), "is a URL; requests are read from a file"),
    ],
)
def test_what_cannot_be_asked_is_a_matter_of_data(atlas: Command, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    """Names that no file system takes were told as trouble with the store, odd bytes as a fault of ours."""
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    (tmp_path / "folder").mkdir()
    (tmp_path / "gone.png").symlink_to("nowhere")
    got = atlas("predict", *words, *(() if "--from" in words else toys().words))
    assert got.code == 3 and said in got.err, got.err


def test_predict_finds_a_picture_however_a_list_writes_its_name(tmp_path: Path) -> None:
    """As packing does."""
    for name in ("e\u0301/a.png", "b/c.png", "back\\slash.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 3), "red").save(tmp_path / name)
    names = [
        "\u00e9/a.png",
        "e\u0301/a.png",
        "b\\c.png",
        "./b//c.png",
        "back\\slash.png",
        str(tmp_path / "b/c.png"),
        "b/../b/c.png",
    ]
    lines = [json.dumps({"task": "t", "image": name}, ensure_ascii=False) for name in [*names, "gone.png", "x" * 300]]
    (tmp_path / "ask.jsonl").write_text("\n".join(lines), encoding="utf-8")
    asked = [request.image for request in read_requests(tmp_path / "ask.jsonl")]
    found = [Path(image).is_file() for (image,) in asked[:-1] if isinstance(image, Path)]  # type: ignore[misc, union-attr]
    assert found == [True] * len(names) + [False]


def test_predict_refuses_an_address_in_the_place_of_a_picture(atlas: Command) -> None:
    got = atlas("predict", "--task", "toy_shape", "--image", "https://example.org/x.png", *toys().words)
    assert got.code == 3 and "is a URL" in got.err


# ------------------------------------------------------------------------------------------------------------ sweeps


def test_a_sweep_shares_what_is_equal_and_adopts_what_is_known(printed: Printed) -> None:
    words = toys().words
    single = len(toys().plan_keys)
    both = json.loads(printed("plan", "-m", "--json", "run=swept", "tasks.toy_ask.stage2.lr=1e-3,7e-4", *words))
    standing = [job["standing"] for job in both["jobs"]]
    assert single < len(standing) < 2 * single
    shared = {job["label"].partition("/")[2] for job in both["jobs"] if job["orders"] == 2}
    assert {"1 toy_shape stage2", "2 toy_kin stage2", "3 toy_ask stage1", "2 eval toy_kin"} <= shared
    assert "3 toy_ask stage2" not in shared
    assert all(job["standing"] == "fact of toy" for job in both["jobs"] if job["orders"] == 2), "what a row has is known already"


def test_a_swept_run_has_a_table_a_page_a_row_and_all_the_commands(printed: Printed, tmp_path: Path) -> None:
    words = (*copied(toys(), tmp_path), "run=swept", "sequence.downstream=[],[toy_pair]", "report=out")
    composed_run = ComposedRun(compose_rows(list(words)))
    plan = composed_run.plan()
    done = {key: toys().bench.done[key] for key in plan.jobs}
    write_ledger(open_run_store(composed_run.config), composed_run.config, plan, done, composed_run.specification())
    assert "run swept: complete" in printed("status", "-m", *words)
    assert "order0-seed0/1 toy_shape stage2" in printed("logs", "-m", *words)
    assert "run swept is complete; nothing to do" in printed("run", "-m", *words)
    text = printed("report", "-m", *words)
    assert "Rows of the sweep" in text
    assert all(f"│ {row} " in text for row in ("downstream=", "downstream=toy_pair"))
    about = [json.loads((tmp_path / "out" / row / "run.json").read_text()) for row in composed_run.rows]
    assert [any("transfer" in job["label"] for job in row["jobs"]) for row in about] == [False, True]
    assert [row["committed"] == row["total"] == len(row["jobs"]) for row in about] == [True, True]
    assert all((tmp_path / "out" / row / "index.html").exists() for row in composed_run.rows)
    text = printed("compare", "swept", "toy", *words[:-3], "--out", "page")
    assert "The averages" not in text, "the rows differ in what they transfer to only"
    assert "3 settings differ" in text, "sequence.downstream, and the two splits that only some have read"
    page = (tmp_path / "page" / "index.html").read_text()
    check_page(page)
    assert all(f"{side}: task view" in page for side in ("swept downstream=", "swept downstream=toy_pair", "toy"))
    assert "3 settings differ" in printed("compare", "swept", *words[:-3], "--out", "rows"), "its rows compare by themselves"
    assert (tmp_path / "out" / "comparison.csv").read_text().count("downstream=toy_pair,average accuracy") == 1
    assert [e["task"] for e in json.loads(printed("bank", "ls", "--json", *words[:-3], "run=swept"))][:2] == [
        "toy_shape",
        "toy_kin",
    ]
