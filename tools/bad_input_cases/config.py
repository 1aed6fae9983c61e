"""Bad configurations."""

from bad_input_cases.steps import TRAIN, Case, config, write

CASES = [
    Case("no such file", "train nowhere.toml --out new", ("nowhere.toml", "No such file")),
    Case("not TOML", TRAIN, ("not valid TOML",), prepare=lambda: write("bad.toml", "[run")),
    Case("not text", TRAIN, ("not a text file",), prepare=lambda: write("bad.toml", b"\xff\xfe")),
    Case("unknown section", TRAIN, ("[optimizer]", "optim"), prepare=config("[optimizer]")),
    Case("unknown key", TRAIN, ("run.round", "rounds"), prepare=config("[run]\nround = 1")),
    Case(
        "a string for a number", TRAIN, ("run.rounds = '9'",), prepare=config('[run]\nrounds = "9"')
    ),
    Case("a negative number", TRAIN, ("optim.lr = -1",), prepare=config("[optim]\nlr = -1")),
    Case("nan", TRAIN, ("optim.lr",), prepare=config("[optim]\nlr = nan")),
    Case("infinity", TRAIN, ("optim.lr",), prepare=config("[optim]\nlr = inf")),
    Case("unknown loss", TRAIN, ("'dpoo'", "dpo"), prepare=config('[loss]\nkind = "dpoo"')),
    Case(
        "an option that the loss ignores",
        TRAIN,
        ("loss.label_smoothing", "not used", "ipo"),
        prepare=config('[loss]\nkind = "ipo"\nlabel_smoothing = 0.1'),
    ),
    Case(
        "a loss constant out of range",
        TRAIN,
        ("label_smoothing", "0.7"),
        prepare=config("[loss]\nlabel_smoothing = 0.7"),
    ),
    Case(
        "a loss without the column it needs",
        TRAIN,
        ("odpo", "score"),
        prepare=config('[loss]\nkind = "odpo"'),
    ),
    Case(
        "an option that the algorithm ignores",
        TRAIN,
        ("algorithm.overlap", "not used"),
        prepare=config('[algorithm]\nkind = "local"\noverlap = true'),
    ),
    Case(
        "an exact method that clipping makes inexact",
        TRAIN,
        ("exact_diffusion", "optim.clip_norm = 0.5", "gradient_tracking"),
        prepare=config('[algorithm]\nkind = "exact_diffusion"\n[optim]\nclip_norm = 0.5'),
    ),
    Case(
        "a topology without neighbours",
        TRAIN,
        ("[topology]", "local"),
        prepare=config('[algorithm]\nkind = "local"\n[topology]\ngraph = "ring"'),
    ),
    Case(
        "an override that is none",
        "train good.toml --out new --set rounds=3",
        ("--set 'rounds=3'", "section.key=value"),
    ),
    Case("no shards named", "train empty.toml --out new", ("data.shards is empty",),
         prepare=lambda: write("empty.toml", "")),
    Case("too many agents", TRAIN, ("agents.count = 9", "8 shards"),
         prepare=config("[agents]\ncount = 9")),
    Case("no model folder", TRAIN, ("policy.model",),
         prepare=config('[policy]\nkind = "causal_lm"')),
    Case("a model folder that is not there", TRAIN, ("no-model",),
         prepare=config('[policy]\nkind = "causal_lm"\nmodel = "no-model"')),
    Case("weights that lose small steps", TRAIN, ("policy.dtype = 'bfloat16'", "small steps"),
         prepare=config('[policy]\nkind = "causal_lm"\nmodel = "m"\ndtype = "bfloat16"')),
    Case("a length that leaves no room", TRAIN, ("policy.max_length = 3", "8 or more"),
         prepare=config('[policy]\nkind = "causal_lm"\nmodel = "m"\nmax_length = 3')),
    Case("tokens of no model", "tokens shards --model nowhere", ("'nowhere'", "is missing")),
    Case("tokens of no shards", "tokens nowhere --model nowhere", ("no folder nowhere",)),
    Case("tokens of an agent that is none", "tokens shards --model m --agent 99",
         ("--agent 99", "agents 0 to 7")),
    Case("a GPU that is not there", TRAIN, ("no GPU",),
         prepare=config('[policy]\nkind = "causal_lm"\nmodel = "."\n[device]\nkind = "cuda"')),
    Case("letters from a GPU where the CPU computes", TRAIN, ("device.staging", "ignored"),
         prepare=config('[device]\nkind = "cpu"\nstaging = "device"')),
    Case("letters from a GPU that is not there", TRAIN, ("device.staging", "CPU"),
         prepare=config('[policy]\nkind = "causal_lm"\nmodel = "."\n'
                        '[device]\nstaging = "device"')),
    Case("feature columns that are not there", TRAIN, ("feature columns",),
         prepare=config('[policy]\nfeatures = "columns"')),
]
