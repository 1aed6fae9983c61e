"""The parser: what it prints, what it suggests, and what a shell may complete."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from limits import HANG

from decdpo import cli, commands
from decdpo.commands.catalogue import COMMANDS, listing
from decdpo.parser import build_parser

REPOSITORY = Path(__file__).resolve().parents[2]


def call(*words, **environment):
    """Run ``decdpo`` as a program of its own; returns status, output and errors."""
    done = subprocess.run(
        [sys.executable, "-m", "decdpo", *words],
        env=os.environ | environment, capture_output=True, text=True, timeout=HANG,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_alone_it_prints_its_help(capsys):
    assert cli.main([]) == 0
    alone = capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0 and alone.err == ""
    assert alone.out == capsys.readouterr().out
    assert max(map(len, alone.out.splitlines())) <= 80


def test_the_help_lists_the_commands_in_the_order_of_use():
    text = listing()
    order = "doctor shard config train resume evaluate report export study".split()
    places = [text.index(f"\n  {name} ") for name in order]
    assert places == sorted(places)


def test_every_module_of_commands_that_declares_arguments_is_a_command():
    modules = Path(commands.__file__).parent.rglob("*.py")
    found = {path.stem for path in modules if "\ndef add_arguments(" in path.read_text()}
    assert found == set(COMMANDS)


@pytest.mark.parametrize(
    "line", [line for command in COMMANDS.values() for line in command.examples]
)
def test_every_example_is_understood(line):
    words = shlex.split(line.replace("\\\n", " ").replace('"$(', " ").replace(')"', " "))
    words = words[words.index("decdpo") + 1 :]
    while words[-2:-1] in ([">"], [">>"]):
        words = words[:-2]
    assert build_parser().parse_args(words).run is not None


PAGES = ("README.md", "jobs/README.md", "data/README.md", "data/studies/README.md")


def commands_of(page):
    """Return the command lines of decdpo in the code blocks of a page."""
    blocks = (REPOSITORY / page).read_text().split("```")[1::2]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    pattern = re.compile(r"(?:(?:mpirun|srun) .*?)?decdpo( .*)?$")
    return [match[1] or "" for line in lines if (match := pattern.match(line.strip()))]


@pytest.mark.parametrize(
    ("page", "line"), [(page, line) for page in PAGES for line in commands_of(page)]
)
def test_every_command_of_the_pages_is_understood(page, line):
    words = shlex.split(line, comments=True)
    assert not words or build_parser().parse_args(words).run is not None


def test_the_pages_hold_commands():
    assert len(commands_of("README.md")) > 12 and len(commands_of("jobs/README.md")) > 4


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_an_example(name, capsys):
    with pytest.raises(SystemExit):
        cli.main([name, "--help"])
    said = capsys.readouterr().out
    assert said.startswith(f"usage: decdpo {name} ") and COMMANDS[name].examples[-1] in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "'trian' is not known (did you mean 'train'?); choose from doctor"),
        (["checkpoint", "shw", "r"], "'shw' is not known (did you mean 'show'?)"),
        (["train", "x", "--out", "r", "--wrold", "mpi"],
         "--wrold mpi (did you mean '--world'?)"),
        (["train", "run.toml", "--ou", "r"], "--ou is no option (did you mean '--out'?)"),
        (["bench", "exchange", "--rank=2"], "--rank=2 (did you mean '--ranks'?)"),
        (["resume", "r", "s"], "unrecognized arguments: s\n"),
    ],
)
def test_a_misspelt_word_is_told_from_the_nearest(words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and message in said
    assert len(words) == 1 or said.startswith(f"usage: decdpo {words[0]}")


@pytest.mark.parametrize("words", [[], ["--version"], ["train", "--help"], ["config"]])
def test_it_works_without_docstrings(words):
    status, out, err = call(*words, PYTHONOPTIMIZE="2")
    assert (status, err) == (0, "") and "decdpo" in out or "[run]" in out


def completions(line):
    """Return what the shell would be offered at the end of ``line``."""
    read, write = os.pipe()
    settings = os.environ | {
        "_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9",
        "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_SHELL": "fish",
    }  # fmt: skip
    subprocess.run(
        ["bash", "-c", f'exec "$@" 8>&{write} 9>/dev/null', "-", sys.executable, "-m", "decdpo"],
        env=settings, pass_fds=[write], capture_output=True, timeout=HANG,
    )  # fmt: skip
    os.close(write)
    with os.fdopen(read) as pipe:
        return [word.partition("\t")[0].strip() for word in pipe.read().split("\n")]


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("decdpo ev", "evaluate"),
        ("decdpo train run.toml --tr", "--trace"),
        ("decdpo train run.toml --set optim.l", "optim.lr="),
        ("decdpo train run.toml --set algorithm.kind=ch", "algorithm.kind=choco"),
        ("decdpo study topology-s", "topology-scaling"),
    ],
)
def test_a_shell_is_told_how_to_go_on(line, word):
    assert word in completions(line)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "tcsh"])
def test_a_shell_gets_its_code(shell, capsys):
    assert cli.main(["completion", shell]) == 0
    assert "decdpo" in capsys.readouterr().out
