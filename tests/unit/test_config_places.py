"""Relative paths of a configuration that is used from elsewhere."""

import json
from dataclasses import fields
from pathlib import Path

import pytest

from decdpo.cli import main
from decdpo.config import parse
from decdpo.config.places import find_paths
from decdpo.config.schema import SECTIONS
from decdpo.errors import ConfigError

TEXTS = {
    "data.shards": '[data]\nshards = "it"',
    "policy.model": '[policy]\nkind = "causal_lm"\nmodel = "it"',
    "policy.chat_template": '[policy]\nkind = "causal_lm"\nchat_template = "it"\nmodel = "/"',
    "policy.feature_map": '[policy]\nkind = "trajectory"\nfeature_map = "it"',
    "topology.file": '[topology]\ngraph = "file"\nfile = "it"',
    "pace.run": '[pace]\nkind = "replay"\nrun = "it"',
    "privacy.secret": '[privacy]\nkind = "dp_sgd"\nsecret = "it"',
    "staleness.run": '[staleness]\nkind = "replay"\nrun = "it"',
}
NAMES = [
    f"{name}.{field.name}"
    for name, section in SECTIONS.items()
    for kind in (section.values() if isinstance(section, dict) else [section])
    for field in fields(kind)
    if field.metadata["path"]
]


def test_every_path_is_tried():
    assert set(NAMES) == set(TEXTS)


def value_of(config, name):
    section, key = name.split(".")
    return getattr(getattr(config, section), key)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Return a folder beside the one that everything is done from."""
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "there"


@pytest.mark.parametrize("name", NAMES)
def test_what_lies_here_is_taken_as_it_is_named(name, elsewhere):
    Path("it").mkdir()
    (elsewhere / "it").mkdir()
    said: list[str] = []
    config = parse(TEXTS[name])
    assert find_paths(config, elsewhere / "run.toml", said.append) == config and said == []


@pytest.mark.parametrize("name", NAMES)
def test_a_path_beside_the_file_is_found_and_told(name, elsewhere):
    (elsewhere / "it").mkdir()
    said: list[str] = []
    config = find_paths(parse(TEXTS[name]), elsewhere / "run.toml", said.append)
    assert value_of(config, name) == str(elsewhere / "it")
    assert said == [
        f"{name} = 'it' is {elsewhere / 'it'}, beside {elsewhere / 'run.toml'}"
    ]


def test_a_template_that_is_no_path_is_left_to_be_a_name(elsewhere):
    config = parse(TEXTS["policy.chat_template"])
    assert find_paths(config, elsewhere / "run.toml", print) == config


@pytest.mark.parametrize("name", [name for name in NAMES if name != "policy.chat_template"])
def test_a_path_that_leads_nowhere_is_told_with_every_place(name, elsewhere):
    run = elsewhere / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"starts": [{"folder": "/start"}, {}]}))
    with pytest.raises(ConfigError) as caught:
        find_paths(parse(TEXTS[name]), run / "config.toml", print)
    for place in (Path.cwd() / "it", run / "it", Path("/start/it")):
        assert f"no {place}" in caught.value.what
    assert f"--set {name}=/absolute/path" in caught.value.remedy
    with pytest.raises(ConfigError, match="no /gone/it\n"):
        find_paths(parse(TEXTS[name].replace('"it"', '"/gone/it"')), run / "config.toml", print)


@pytest.mark.parametrize("content", ["", "[]", '{"starts": 3}', '{"starts": [3]}', "[" * 100000])
def test_a_broken_record_of_starts_names_no_place(content, elsewhere):
    (elsewhere / "run.json").write_text(content)
    with pytest.raises(ConfigError, match="data.shards"):
        find_paths(parse(TEXTS["data.shards"]), elsewhere / "config.toml", print)


def test_a_model_of_the_hub_is_not_sought(elsewhere):
    config = parse(TEXTS["policy.model"] + "\nallow_hub = true")
    assert find_paths(config, elsewhere / "run.toml", print) == config


def test_a_run_is_used_from_anywhere(elsewhere, monkeypatch, capsys):
    """A run is trained, resumed, measured and exported from folders that know nothing of it."""
    monkeypatch.chdir(elsewhere)
    shard = "synthesize choices --agents 2 --pairs 12 --dimension 4 --out shd"
    assert main(shard.split()) == 0
    Path("run.toml").write_text(
        '[data]\nshards = "shd"\n[run]\nrounds = 2\n[policy]\nfeatures = "columns"\n'
    )
    assert main("train run.toml --out r".split()) == 0
    monkeypatch.chdir("/")
    run = elsewhere / "r"
    capsys.readouterr()
    assert main(["resume", str(run), "--set", "run.rounds=3"]) == 0
    assert f"{elsewhere / 'shd'}, where the run was started" in capsys.readouterr().err
    assert main(["evaluate", str(run)]) == 0
    assert main(["export", str(run), "--out", str(elsewhere / "model")]) == 0
    assert main(["theory", str(elsewhere / "run.toml"), "--iterations", "0"]) == 0
    assert main(["train", str(elsewhere / "run.toml"), "--out", str(elsewhere / "r2")]) == 0
    (elsewhere / "shd").rename(elsewhere / "moved")
    capsys.readouterr()
    assert main(["evaluate", str(run)]) == 2
    assert "--set data.shards=/absolute/path" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--set", f"data.shards={elsewhere / 'moved'}"]) == 0


def test_what_is_no_run_or_configuration_is_told_what_there_is(elsewhere, monkeypatch, capsys):
    monkeypatch.chdir(elsewhere)
    for name in ("ring", "star"):
        (elsewhere / "runs" / name).mkdir(parents=True)
        (elsewhere / "runs" / name / "config.toml").touch()
    (elsewhere / "run.toml").touch()
    (elsewhere / "runs" / "empty").mkdir()
    for words, expected in (
        ("evaluate runs/rings",
         f"did you mean 'ring'?): the runs in {elsewhere / 'runs'} are ring, star"),
        ("resume runs", "no config.toml (killed before its first checkpoint?)|are ring, star"),
        ("resume runs/empty", f"the runs in {elsewhere / 'runs'} are ring, star"),
        ("export here --out x", f"there is no {elsewhere / 'here'}|{elsewhere} has no run"),
        ("checkpoint digest runs/rings", f"no {elsewhere / 'runs' / 'rings'}|did you mean 'ring'?"),
        ("theory runs/rings", f"no {elsewhere / 'runs' / 'rings'}|did you mean 'ring'?"),
        ("theory rum.toml", "did you mean 'run.toml'?"),
        ("train rum.toml --out x", f"did you mean 'run.toml'?): the TOML files in {elsewhere}"),
        ("config runs", f"give a TOML file: {elsewhere / 'runs'} has no TOML file"),
        ("study topolgy --out x", "no study 'topolgy' (did you mean 'topology'?)"),
    ):  # fmt: skip
        assert main(words.split()) in (2, 3)
        said = capsys.readouterr().err
        assert all(part in said for part in expected.split("|")), said


def test_a_place_that_is_not_utf8_is_refused_at_the_start(elsewhere):
    odd = elsewhere / "d\udcff"
    (odd / "it").mkdir(parents=True)
    config = parse(TEXTS["data.shards"])
    with pytest.raises(ConfigError, match="not UTF-8") as caught:
        find_paths(config, odd / "c.toml", print)
    assert "data.shards = 'it'" in caught.value.what
