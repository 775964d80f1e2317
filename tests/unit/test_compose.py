"""Settings: what composes, what is refused, and what the refusal says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from atlas_dist.choices import choice_file, groups
from atlas_dist.compose import compose_config, compose_rows
from atlas_dist.config import RunConfig, load_config, takes_text
from atlas_dist.core.keys import flattened
from atlas_dist.errors import ConfigError


@pytest.mark.parametrize("experiment", groups()["experiment"])
def test_every_experiment_composes(experiment: str) -> None:
    config = compose_config([f"experiment={experiment}"])
    assert config.sequence.upstream
    assert RunConfig.model_validate(config.model_dump()) == config


@pytest.mark.parametrize("group", ["train", "cluster", "store", "shards"])
def test_a_file_of_a_group_holds_only_what_differs_from_what_is_declared(group: str) -> None:
    declared = dict(flattened(RunConfig().model_dump(mode="json")[group]))
    for choice in groups()[group]:
        given = dict(flattened(yaml.safe_load(choice_file(group, choice).read_text()) or {}))
        assert {key for key, value in given.items() if declared.get(key) == value} == set(), choice


@pytest.mark.parametrize("group", ["method", "backbone", "task"])
def test_every_choice_of_a_group_composes(group: str) -> None:
    for choice in groups()[group]:
        word = f"+task@tasks.extra={choice}" if group == "task" else f"{group}={choice}"
        compose_config([word])


@pytest.mark.parametrize(
    ("word", "cause"),
    [
        ("experiment=dmeo", r"no such experiment.*Did you mean demo"),
        ("train.workrs=3", r"train.workrs: there is no such key; did you mean workers"),
        ("trian.workers=3", r"trian: there is no such key; did you mean train"),
        ("train.precision=fp8", r"train.precision.*'auto', 'fp32' or 'bf16' \(it is 'fp8'\)"),
        ("train.zero_stage=4", r"train.zero_stage"),
        ("pack.on=slurm", r"pack.on.*'here' or 'ray'"),
        ("train.workers=300", r"too few for 300 workers: a worker without a sample only costs"),
        ("sequence.upstream=[digits,zap]", r"sequence names zap; the tasks of this configuration are digit_parity, digits"),
        ("tasks.digits.kind=film", r"'single', 'choice', 'pair', 'answers' or 'generate'"),
        ("seeds=[1,1]", r"seeds must differ"),
        ("cluster.pools=0", r"cluster.pools: give a number of equal pools, at least 1, or pools by name"),
        ("cluster.pools={big:{takes:[upstream]}}", r"no pool takes evaluation or transfer; add it to the `takes`"),
        ("cluster.pools={a:{takes:[learning]}}", r"'upstream', 'evaluation', 'transfer' or 'reference' \(it is 'learning'\)"),
        ("cluster.pools={a:{workers:2,min_workers:3}}", r"pool a has 2 workers, fewer than its min_workers of 3"),
        ("cluster.pools={a:{workers:900}}", r"too few for 900 workers"),
        ("cluster.pools={a:{labels:{market:spot or not}}}", r"cluster.pools.a.labels.market"),
        ("train.min_workers=3", r"pool main has 2 workers, fewer than its min_workers of 3"),
        ("compare.atlsa.settings.rank=8", r"compare.atlsa names no method: give compare.atlsa.name; the other rows are none"),
        ("store=s3", r"store.url is left open"),
        ("demo", r"not a setting"),
    ],
)
def test_a_slip_is_refused_with_its_cause_and_the_valid_choices(word: str, cause: str) -> None:
    with pytest.raises(ConfigError, match=cause):
        compose_config([word])


@pytest.mark.parametrize(
    ("word", "fix"),
    [
        ("method.settings.rank=8", r"compare\.NAME\.settings\.rank=8; or .*'~compare'"),
        ("++method.settings.rank=8", r"compare\.NAME\.settings\.rank=8"),
        ("method=ewc", r"only=\[NAME\]; or .*'~compare'"),
    ],
)
def test_a_setting_that_a_comparison_would_pass_over_is_refused(word: str, fix: str) -> None:
    with pytest.raises(ConfigError, match="would have no effect: the run compares atlas, individual_adapters,") as refused:
        compose_config(["experiment=related_real", "only=[atlas,individual_adapters]", word])
    assert re.search(fix, refused.value.fix)
    assert compose_config(["experiment=related_real", "~compare", word]).variants, "without the comparison it counts"
    assert compose_config(["experiment=related_real", "compare.atlas.settings.rank=8"]).compare["atlas"].settings["rank"] == 8


def test_relative_places_are_resolved_and_urls_left_alone(tmp_path: Path) -> None:
    config = load_config({"store": {"url": "s3://bucket/x"}, "shards": {"url": "there"}}).at(tmp_path)
    assert (config.store.url, config.shards.url) == ("s3://bucket/x", str(tmp_path / "there"))


def test_several_faults_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({"train": {"workers": 0}, "seeds": [], "cluster": {"adress": "auto"}})
    assert all(word in str(caught.value) for word in ("train.workers", "seeds", "did you mean address"))


# ------------------------------------------------------------------------------------------------------------- sweeps


def test_a_sweep_is_a_row_for_each_combination() -> None:
    rows = compose_rows(["experiment=toy", "train.budget.lr=1e-3,5e-4", "seeds=[0],[1,2]", "method=choice(atlas,ewc)"])
    assert list(rows)[:3] == ["lr=0.001,seeds=0,method=atlas", "lr=0.001,seeds=0,method=ewc", "lr=0.001,seeds=1,2,method=atlas"]
    assert len(rows) == 8
    last = rows["lr=0.0005,seeds=1,2,method=ewc"]
    assert (last.train.budget.lr, last.seeds, last.method.name) == (5e-4, [1, 2], "ewc")


def test_rows_are_called_by_what_differs_and_by_whole_keys_where_ends_are_equal() -> None:
    assert list(compose_rows(["experiment=toy"])) == [""]
    both = compose_rows(["experiment=toy", "train.stage1.lr=1e-3,1e-4", "train.stage2.lr=1e-2,1e-3"])
    assert next(iter(both)) == "train.stage1.lr=0.001,train.stage2.lr=0.01"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train.workers=1,2"], r"only one value of: train.workers \(1, 2\)"),
        (["store.url=a,b"], "store.url"),
        (["run=a,b", "backbone=tiny,random_tiny"], "backbone.name.*run"),
        (["train.budget.lr=interval(0,1)"], "which values"),
        (["method=glob(*)"], "no such method"),
        (["train.budget.lr=1e-3,0.001"], "stands twice"),
        (["train.budget.lr=1e-3,"], "can't be read"),
        (["method=atlas,ewk"], "Did you mean ewc"),
        (["train.budget.lr=1e-3,-1"], "train.budget.lr"),
        (["seeds=range(0,40)", "train.budget.lr=range(1,40)"], "more than 1000"),
    ],
)
def test_what_cannot_be_swept_in_one_run_is_refused_by_name(words: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        compose_rows(["experiment=toy", *words])


def test_several_values_without_m_say_what_m_is_for() -> None:
    with pytest.raises(ConfigError, match="-m"):
        compose_config(["experiment=toy", "train.budget.lr=1e-3,5e-4"])


# ------------------------------------------------------------------------------------------ words that mean something to a parser


ODD = [
    "/tmp/données/s",
    "/tmp/lr=1e-3/s",
    "/tmp/run(1)/s",
    "/tmp/a#1",
    "/tmp/a,b/s",
    "/tmp/a&b;c!d@e%f^g",
    "/tmp/{x}/[y]",
    '/tmp/it\'s "mine"',
    "/tmp/back\\slash",
    "/tmp/ends in\\",
    "/tmp/数据",
    "/tmp/a:b",
    "/tmp/$HOME",
    "/tmp/a|b<c>",
    "/tmp/100%",
    "/tmp/*?",
]


@pytest.mark.parametrize("path", ODD)
def test_a_path_is_taken_as_it_was_written(path: str) -> None:
    assert compose_config(["experiment=toy", f"store.url={path}"]).store.url == path
    assert compose_config(["experiment=toy", f"++shards.url={path}"]).shards.url == path
    if "," not in path:
        assert compose_rows(["experiment=toy", f"store.url={path}", "seeds=[0],[1]"])["seeds=0"].store.url == path


def test_what_hydra_understood_before_means_the_same() -> None:
    def url(word: str) -> str:
        return compose_config(["experiment=toy", word]).store.url

    assert url("store.url=/tmp/a b") == "/tmp/a b"
    assert url("store.url='/tmp/a,b'") == "/tmp/a,b"
    assert url('store.url="/tmp/it\'s"') == "/tmp/it's"
    assert url(r"store.url=/tmp/a\,b") == "/tmp/a,b"
    assert url("store.url=/tmp/${run}/s") == "/tmp/toy/s"
    assert url("store.url=~/x") == str(Path.home() / "x")


@pytest.mark.parametrize(
    "name", ["20240101", "2024_01_01", "1e3", "007", "on", "true", "null", "inf", "1.5", "2024-01-01", "yes"]
)
def test_a_run_is_called_what_its_user_wrote(name: str) -> None:
    assert compose_config(["experiment=toy", f"run={name}"]).run == name
    assert next(iter(compose_rows(["experiment=toy", f"run={name}"]).values())).run == name


def test_a_name_that_no_run_can_have_is_told_in_the_settings_words() -> None:
    for name in ("données", "a b", "-x", "a/b"):
        with pytest.raises(ConfigError, match=r"run: String should match pattern .*Write letters A to Z, digits"):
            compose_config(["experiment=toy", f"run={name}"])


@pytest.mark.parametrize("value", ["range(1,3)", "choice(a,b)", "glob(*)", "a,b"])
def test_a_folder_that_reads_like_a_sweep_says_how_to_write_it(value: str) -> None:
    with pytest.raises(ConfigError, match=r"store.url=.* gives several values.*key='a,b'") as caught:
        compose_config(["experiment=toy", f"store.url={value}"])
    assert "multirun" not in str(caught.value)
    assert compose_config(["experiment=toy", f"store.url='{value}'"]).store.url.endswith(f"/{value}")


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("train.budget.lr=1e-3,é", "train.budget.lr"),
        ("train.workers=zwei", "train.workers.*integer"),
        ("train.workers=é", "train.workers.*integer.*'é'"),
        ("sequence.upstream=[digits", r"sequence.upstream.*'\[digits'"),
        ("tasks={x:{kind:single", "tasks.*dict"),
        ("na ïve=1", "can't be read as a setting"),
        ("=1", "is not a setting"),
        ("sequence.upstream=[true]", r"sequence.upstream.0: a text is needed, and True is none: write it in quotes"),
    ],
)
def test_no_parsers_jargon_is_shown(word: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        compose_config(["experiment=toy", word])
    for jargon in ("token recognition", "mismatched input", "no viable alternative", "extraneous", "LexerNoViableAlt"):
        assert jargon not in str(caught.value)


CHOICES = ["on", "off", "yes", "null", "true", "20240101", "1e3", "a b", "naïve", "x=1", "run(1)", "a.b"]


@pytest.mark.parametrize("name", CHOICES)
def test_an_experiment_may_be_called_by_a_word_of_the_parser(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs" / "experiment").mkdir(parents=True)
    text = "# @package _global_\ndefaults: [override /sequence: toy]\nrun: mine\n"
    (tmp_path / "configs" / "experiment" / f"{name}.yaml").write_text(text)
    assert name in groups()["experiment"]
    assert compose_config([f"experiment={name}"]).run == "mine"
    assert compose_rows([f"experiment={name}", "seeds=[0],[1]"])["seeds=1"].run == "mine"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("defaults: [override /sequence: on]", r"names true, false or a number.*in quotes"),
        ("defaults: [override /sequence: 2024]", r"names true, false or a number.*in quotes"),
        ("run: [a", r"can't be read.*mine\.yaml"),
    ],
)
def test_a_file_that_says_something_else_than_it_looks_like_is_told(
    text: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs" / "experiment").mkdir(parents=True)
    (tmp_path / "configs" / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{text}\n")
    with pytest.raises(ConfigError, match=says):
        compose_config(["experiment=mine"])


@pytest.mark.parametrize("folder", ["plain", "with space", "it's, ü", "a#b", "100%", "x=1"])
def test_a_users_own_file_comes_before_ours_of_the_same_name(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task `digits` of one's own was passed over in silence for scikit-learn's."""
    home = tmp_path / folder
    (home / "configs" / "task").mkdir(parents=True)
    (home / "configs" / "task" / "digits.yaml").write_text("kind: single\ndata: {dataset: mine}\nmax_text: 8\n")
    monkeypatch.chdir(home)
    assert compose_config(["+task@tasks.extra=digits"]).tasks["extra"].data.dataset == "mine"
    assert choice_file("task", "digits") == home / "configs" / "task" / "digits.yaml"
    monkeypatch.chdir(tmp_path)
    assert compose_config(["+task@tasks.extra=digits"]).tasks["extra"].data.dataset != "mine"


def test_which_settings_are_texts() -> None:
    assert all(map(takes_text, ("run", "store.url", "report", "tasks.x.data.dataset", "backbone.source", "shards.cache_dir")))
    assert not any(map(takes_text, ("train.workers", "seeds", "tasks", "tasks.x", "train.precision", "no.such", "")))
