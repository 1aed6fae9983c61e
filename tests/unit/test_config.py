"""The configuration: what it accepts, what it refuses and how it says so."""

import os
import subprocess
import sys

import pytest
from limits import HANG

from decdpo.config import load, parse
from decdpo.config.schema import SECTIONS
from decdpo.errors import ConfigError


def test_a_file_with_only_the_shards_gives_a_whole_experiment():
    config = parse('[data]\nshards = "shards/hh"')
    assert config.data.shards == "shards/hh"
    assert config.run.rounds == 200 and config.data.batch_size == 16
    assert config.algorithm.kind == "dsgd" and config.algorithm.overlap is True
    assert config.topology.graph == "ring" and config.optim.lr == 0.1


LM = '[policy]\nkind = "causal_lm"\nmodel = "m"\n'


@pytest.mark.parametrize(
    ("text", "kind", "lr"),
    [
        ("", "sgd", 0.1),
        ('[optim]\nkind = "adamw"', "adamw", 1e-3),
        ("[optim]\nlr = 0.3", "sgd", 0.3),
        ('[policy]\nkind = "tabular"', "sgd", 0.1),
        (LM, "adamw", 1e-5),
        (LM + "[policy.lora]\nrank = 2", "adamw", 2e-4),
        (LM + '[policy.lora]\nadapter = "f"', "adamw", 2e-4),
        (LM + "[policy.lora]\nrank = 0", "adamw", 1e-5),
        (LM + "[optim]\nlr = 0.3", "adamw", 0.3),
        (LM + '[optim]\nkind = "adamw"', "adamw", 1e-5),
        (LM + '[optim]\nkind = "sgd"\nlr = 0.1', "sgd", 0.1),
    ],
)
def test_the_optimizer_that_is_left_out_suits_the_policy(text, kind, lr):
    config = parse(text)
    assert (config.optim.kind, config.optim.lr) == (kind, lr)
    # A run folder holds them as if they had been given.
    assert f'[optim]\nkind = "{kind}"\nlr = {lr!r}\n' in config.to_toml()
    assert parse(config.to_toml()) == config


@pytest.mark.parametrize("reading", [False, True])
def test_a_run_of_an_earlier_version_goes_on_with_the_steps_it_took(reading):
    # It had the defaults of the log-linear policy, and wrote them down.
    text = LM + '[optim]\nkind = "sgd"\nlr = 0.1\nschedule = "constant"\n'
    optim = parse(text, reading=reading).optim
    assert (optim.kind, optim.lr) == ("sgd", 0.1)


def test_plain_steps_of_a_language_model_have_no_usual_size():
    with pytest.raises(ConfigError, match="optim.lr is not given") as caught:
        parse(LM + '[optim]\nkind = "sgd"')
    assert "set optim.lr" in caught.value.remedy and "AdamW" in caught.value.remedy


def test_toml_out_is_toml_in():
    config = parse(
        '[data]\nshards = "a \\"b\\"\\tc"\n[optim]\nkind = "adamw"\nbetas = [0.8, 0.95]\n'
        "[comm]\ntimeout = 5\n"
    )
    assert parse(config.to_toml()) == config
    assert parse(config.to_toml(annotate=True)) == config
    assert parse(config.to_toml()).digest == config.digest


def test_every_section_survives_the_round_trip_in_every_kind():
    for name, schema in SECTIONS.items():
        for kind in schema if isinstance(schema, dict) else ():
            # The log-linear policy has no lengths for the length-regularised loss, and no parts.
            parts = ["policy.lora.rank=2", "policy.personal.reward=true"]
            others = {
                "rdpo_length": ["policy.kind=trajectory"],
                "fedpdpo": ["policy.kind=causal_lm", *parts],
            }.get(kind, [])
            config = parse(f'[{name}]\nkind = "{kind}"', others)
            assert parse(config.to_toml()) == config


def test_every_key_is_documented():
    from dataclasses import fields

    for schema in SECTIONS.values():
        for cls in schema.values() if isinstance(schema, dict) else [schema]:
            assert cls.__doc__
            for field in fields(cls):
                assert len(field.metadata["doc"]) > 5, (cls, field.name)


def test_overrides_win_and_are_typed():
    config = parse("[run]\nrounds = 5", ["run.rounds=7", "optim.lr=1", "topology.graph=star"])
    assert config.run.rounds == 7 and config.optim.lr == 1.0 and config.topology.graph == "star"


@pytest.mark.parametrize(
    "text, words",
    [
        ("[run]\nround = 3", ["run.round", "did you mean 'rounds'"]),
        ("[runs]\nrounds = 3", ["[runs]", "did you mean 'run'"]),
        # Of another trainer, where it means the most tokens of a prompt.
        (
            '[policy]\nkind = "causal_lm"\nmax_prompt_length = 9',
            ["policy.max_prompt_length is not a key", "set policy.max_length"],
        ),
        ('[run]\nrounds = "3"', ["run.rounds = '3'", "a string", "an integer"]),
        ("[run]\nrounds = true", ["run.rounds", "an integer"]),
        ("[run]\nrounds = 1000000000000000000", ["run.rounds = 1", "1000000000 or less"]),
        ("[algorithm]\nlocal_steps = 9223372036854775807", ["algorithm.local_steps", "or less"]),
        ("[run]\nrounds = 0", ["run.rounds = 0", "1 or more"]),
        ("[run]\nseed = -1", ["run.seed = -1", "0 or more"]),
        ("[optim]\nlr = 0", ["optim.lr", "more than 0"]),
        ("[optim]\nlr = nan", ["optim.lr", "nan"]),
        ("[optim]\nmomentum = 1.5", ["optim.momentum = 1.5", "less than 1.0"]),
        ('[optim]\nkind = "sgd"\nbetas = [0.9, 0.9]', ["optim.betas", "not used", "adamw"]),
        ('[optim]\nkind = "adam"', ["optim.kind = 'adam'", "did you mean 'adamw'"]),
        ('[optim]\nkind = "adamw"\nbetas = [0.9]', ["optim.betas", "two"]),
        ('[optim]\nkind = "adamw"\nbetas = 0.9', ["optim.betas", "a list"]),
        ("[optim]\nnesterov = true", ["nesterov", "momentum"]),
        ('[policy]\nkind = "causal_lm"\ndtype = "float16"', ["float16", "'bfloat16'"]),
        ('[policy]\nkind = "causal_lm"\ndtype = "float23"', ["did you mean 'float32'"]),
        ('[policy]\nkind = "causal_lm"\nmax_length = 7', ["policy.max_length = 7", "8 or more"]),
        ('[policy]\nkind = "loglinear"\nmodel = "x"', ["policy.model", "causal_lm"]),
        ('[policy]\nfeatures = "columns"\ndimension = 10', ["policy.dimension", "remove"]),
        ('[algorithm]\nkind = "local"\noverlap = true', ["algorithm.overlap", "dsgd"]),
        ('[algorithm]\nkind = "local"\n[topology]\ngraph = "ring"', ["[topology]", "neighbours"]),
        ('[algorithm]\nkind = "fedavg"\n[topology]\ngraph = "ring"', ["[topology]", "neighbours"]),
        ('[algorithm]\nkind = "fedavg"\nweighting = "size"', ["algorithm.weighting", "pairs"]),
        ('[algorithm]\nkind = "exact_diffusion"\n[topology]\ngraph = "exponential"',
         ["directed", "symmetric", "gradient_tracking"]),
        ('[algorithm]\nkind = "exact_diffusion"\n[topology]\ngraph = "one_peer_exponential"',
         ["directed", "symmetric"]),
        ('[algorithm]\nkind = "exact_diffusion"\n[optim]\nkind = "adamw"', ["exact", "sgd"]),
        ('[algorithm]\nkind = "exact_diffusion"\n[optim]\nclip_norm = 0.5',
         ["exact", "optim.clip_norm = 0.5", "gradient_tracking"]),
        ('[algorithm]\nkind = "exact_diffusion"\noverlap = true', ["algorithm.overlap", "dsgd"]),
        ('[algorithm]\nkind = "gradient_tracking"\nlocal_steps = 2', ["algorithm.local_steps"]),
        ('[algorithm]\nkind = "gradient_tracking"\n[topology]\nweights = "push"',
         ["column-stochastic", "push_sum"]),
        ('[topology]\ngraph = "exponential"\nweights = "push"', ["column-stochastic", "push_sum"]),
        ('[algorithm]\nkind = "quasi_global_momentum"\n[optim]\nmomentum = 0.9',
         ["own momentum", "algorithm.beta"]),
        ('[algorithm]\nkind = "quasi_global_momentum"\n[optim]\nkind = "adamw"',
         ["own momentum", "sgd"]),
        ('[algorithm]\nkind = "outer_momentum"\nouter_momentum = 0', ["nesterov", "ignored"]),
        ('[algorithm]\nkind = "choco"\ncodec = "int8"\nratio = 0.1', ["ratio", "int8", "topk"]),
        ('[algorithm]\nkind = "choco"\n[topology]\ngraph = "random_matching"',
         ["random_matching", "weights change", "dsgd"]),
        ('[algorithm]\nkind = "choco"\n[topology]\nweights = "push"', ["column-stochastic"]),
        ('[algorithm]\nkind = "choco"\nratio = 0', ["algorithm.ratio", "more than 0"]),
        ('[staleness]\nmax_age = 2', ["staleness.max_age", "'none'", "seeded"]),
        ('[staleness]\nkind = "arrival"\ndelay = "fixed"', ["staleness.delay", "seeded"]),
        ('[staleness]\nkind = "arrival"\n[comm]\ntransport = "window"', ["comm.transport"]),
        ('[staleness]\nkind = "seeded"\n[algorithm]\nkind = "choco"', ["enters them once"]),
        ('[staleness]\nkind = "arrival"\n[algorithm]\nkind = "gradient_tracking"',
         ["enters them once", "'dsgd'"]),
        ('[staleness]\nkind = "seeded"\n[algorithm]\nkind = "fedavg"', ["no neighbours"]),
        ('[staleness]\nkind = "seeded"\n[topology]\ngraph = "one_peer_exponential"',
         ["one_peer_exponential", "older messages"]),
        ('[topology]\ngraph = "rng"', ["topology.graph = 'rng'", "did you mean 'ring'"]),
        ('[topology]\nfile = "g.txt"', ["topology.graph = 'ring'", "file"]),
        ("[loss]\nlabel_smoothin = 0.1", ["loss.label_smoothin", "label_smoothing"]),
        ("[run\nrounds = 3", ["not valid TOML"]),
        ("run = 3", ["run = 3", "section"]),
        ('[device]\nkind = "cpu"\nshare_gpu = true', ["share_gpu", "ignored"]),
        ('[loss]\nkind = "rdpo_length"', ["loglinear", "one step", "length"]),
        ("[agents]\ncount = 1" + "0" * 22, ["agents.count", "74 bits", "63"]),
        ("[run]\nrounds = 1" + "0" * 5000, ["not valid TOML", "digits"]),
        ("[run]\nrounds = " + "[" * 100000, ["not valid TOML"]),
        ("[comm]\nchunk_mib = 2048", ["comm.chunk_mib", "1024 or less"]),
    ],
)
def test_a_mistake_is_named_with_its_remedy(text, words):
    with pytest.raises(ConfigError) as caught:
        parse(text)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize(
    "text",
    [
        '[algorithm]\nkind = "push_sum"\n[topology]\ngraph = "exponential"\nweights = "push"',
        '[algorithm]\nkind = "push_sum"\n[topology]\ngraph = "one_peer_exponential"',
        '[algorithm]\nkind = "gradient_tracking"\n[topology]\ngraph = "random_matching"',
        '[algorithm]\nkind = "exact_diffusion"\n[topology]\ngraph = "random_matching"',
        '[algorithm]\nkind = "gradient_tracking"\n[optim]\nkind = "adamw"',
        '[algorithm]\nkind = "gradient_tracking"\n[optim]\nclip_norm = 0.5',
        '[algorithm]\nkind = "exact_diffusion"\n[optim]\nmomentum = 0.5\nweight_decay = 0.1',
        '[algorithm]\nkind = "fedavg"\nparticipants = 3\nserver_momentum = 0.9',
        '[algorithm]\nkind = "outer_momentum"\nouter_momentum = 0\nnesterov = false',
        '[algorithm]\nkind = "choco"\ncodec = "int4"\n[topology]\ngraph = "exponential"',
        '[staleness]\nkind = "seeded"\nmax_age = 5\n[algorithm]\nkind = "quasi_global_momentum"',
        '[algorithm]\nkind = "choco"\ncodec = "randomk"\nratio = 0.01\ngamma = 0.005',
    ],
)
def test_a_sound_combination_is_accepted(text):
    assert parse(parse(text).to_toml()) == parse(text)


def test_a_byte_order_mark_is_no_content(tmp_path):
    (tmp_path / "run.toml").write_text("[run]\nrounds = 3", encoding="utf-8-sig")
    assert load(tmp_path / "run.toml").run.rounds == 3


def test_an_override_is_one_line():
    with pytest.raises(ConfigError, match="more than one line"):
        parse("", ["run.rounds=3\nseed=4"])


@pytest.mark.parametrize("override", ["rounds=3", "run.rounds", "run.=3", "=", ".a=1"])
def test_a_broken_override_is_refused(override):
    with pytest.raises(ConfigError, match="section.key=value"):
        parse("", [override])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="nowhere.toml"):
        load(tmp_path / "nowhere.toml")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not a text file"):
        load(tmp_path / "binary")


def test_the_command_line_starts_without_heavy_imports():
    code = (
        "import sys, decdpo, decdpo.config, decdpo.parser as c; c.build_parser();"
        "import decdpo.studies.catalogue;"
        "heavy = ('torch', 'mpi4py', 'transformers', 'h5py', 'numpy');"
        "print([m for m in heavy if m in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_a_section_that_only_an_override_names_is_not_blamed_on_a_file():
    with pytest.raises(ConfigError, match=r"\[foo\] in --set is not a section"):
        load(None, ["foo.bar=1"])


def test_the_keys_of_a_language_model_are_shown_before_one_is_named(capsys):
    from decdpo.cli import main

    assert main(["config", "--set", "policy.kind=causal_lm"]) == 0
    shown = capsys.readouterr().out
    for key in ("model", "max_length", "chat_template", "eos", "line_break"):
        assert f"\n{key} = " in shown


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("", "optim.momentum"),
        ('[algorithm]\nkind = "fedavg"', "algorithm.server_momentum"),
        ('[algorithm]\nkind = "outer_momentum"', "algorithm.outer_momentum"),
        ('[algorithm]\nkind = "quasi_global_momentum"', "algorithm.beta"),
        ('[algorithm]\nkind = "quasi_global_momentum"', "algorithm.mu"),
    ],
)
def test_a_momentum_that_never_fades_is_refused(kind, key):
    parse(kind, [f"{key}=0.999"])
    with pytest.raises(ConfigError, match=f"{key} = 1.0 is too large"):
        parse(kind, [f"{key}=1"])
    with pytest.raises(ConfigError, match="less than 1.0"):
        parse('[optim]\nkind = "adamw"\nbetas = [0.9, 1.0]')


def test_a_warm_up_may_fill_the_run_and_no_more():
    several = '[algorithm]\nlocal_steps = 3\n[run]\nrounds = 5'
    parse(several, ["optim.warmup_steps=15"])
    with pytest.raises(ConfigError, match="warmup_steps = 16.*15 local steps"):
        parse(several, ["optim.warmup_steps=16"])


FLOATS = [
    ("optim.lr", ""), ("optim.clip_norm", ""), ("optim.weight_decay", ""), ("loss.beta", ""),
    ("algorithm.outer_lr", '[algorithm]\nkind = "outer_momentum"'),
    ("optim.eps", '[optim]\nkind = "adamw"'),
]  # fmt: skip


@pytest.mark.parametrize(("key", "kind"), FLOATS)
@pytest.mark.parametrize(("value", "said"), [("1e39", "more than"), ("1e-39", "is 0 in")])
def test_a_number_beyond_the_policys_type_is_refused(key, kind, value, said):
    match = f"{key} = {value[:2]}.*{said} .*policy.dtype = 'float32'"
    with pytest.raises(ConfigError, match=match):
        parse(kind, [f"{key}={value}"])
    parse(kind, [f"{key}={value}", "policy.dtype=float64"])
    parse(kind, [f"{key}={value}"], reading=True)


@pytest.mark.parametrize(
    "key",
    ["data.batch_size", "policy.dimension", "device.threads", "comm.timeout"],
)
def test_a_number_without_end_is_refused(key):
    with pytest.raises(ConfigError, match=f"{key} = .* is too large"):
        parse("", [f"{key}=1000000000000000000"])


@pytest.mark.parametrize("text", ["a\0b", "\udcff"])
def test_text_that_no_file_can_hold_is_refused(text):
    with pytest.raises(ConfigError, match="data.shards = "):
        parse("", [f"data.shards={text}"])


def test_a_named_pipe_is_no_configuration_but_an_open_one_is(tmp_path):
    os.mkfifo(tmp_path / "a.toml")
    with pytest.raises(ConfigError, match="named pipe"):
        load(tmp_path / "a.toml")
    reader, writer = os.pipe()
    os.write(writer, b"[run]\nrounds = 3")
    os.close(writer)
    assert load(f"/dev/fd/{reader}").run.rounds == 3
    os.close(reader)


@pytest.mark.parametrize(
    "text",
    [
        "[optim]\nmomentum = 1.0",
        '[optim]\nkind = "adamw"\nbetas = [0.9, 1.0]',
        '[algorithm]\nkind = "fedavg"\nserver_momentum = 1.0',
        '[algorithm]\nkind = "outer_momentum"\nouter_momentum = 1.0',
        '[algorithm]\nkind = "quasi_global_momentum"\nmu = 1.0\nbeta = 1.0',
        "[run]\nrounds = 2000000000",
        "[optim]\nwarmup_steps = 1000",
    ],
)
def test_what_earlier_versions_trained_with_can_still_be_read(text):
    with pytest.raises(ConfigError):
        parse(text)
    assert parse(text, reading=True).to_toml()


def test_reading_still_refuses_what_no_version_took():
    with pytest.raises(ConfigError, match="momentum = 1.5"):
        parse("[optim]\nmomentum = 1.5", reading=True)
