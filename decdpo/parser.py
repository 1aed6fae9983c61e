"""The parser of the command line: one subcommand per module of ``decdpo.commands``."""

import argparse
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from decdpo import __version__
from decdpo.comm.mpi.launch import let_the_first_report
from decdpo.commands.alone import by_one_process
from decdpo.commands.catalogue import COMMANDS, EXIT_CODES, MODULES, examples, listing
from decdpo.config.options import nearest


class Parser(argparse.ArgumentParser):
    """A parser that names what a misspelt choice, command or option comes closest to."""

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**{**settings, "allow_abbrev": False})
        self._given: list[str] = []

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse ``args``; an argument that nobody knows is an error of its own subcommand."""
        known, rest = self.parse_known_args(args, namespace)
        if rest:
            parser = getattr(known, "parser", self)
            word = next((text for text in rest if text.startswith("-")), "").partition("=")[0]
            close = nearest(word, tuple(parser.options())) if word else ""
            parser.error(f"unrecognized arguments: {' '.join(rest)}{close}")
        return known

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse ``args`` as far as they are known, and keep them for ``error``."""
        self._given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def options(self) -> Iterator[str]:
        """Yield the options of this parser and of those under it."""
        for action in self._actions:
            yield from (text for text in action.option_strings if text.startswith("--"))
            if isinstance(action.choices, dict):
                for parser in action.choices.values():
                    yield from parser.options()

    def error(self, message: str) -> NoReturn:
        """Print the usage and ``message``, once for all copies of a job, and exit with status 2.

        A misspelt option may be why another one is missing: then its nearest is named.
        """
        let_the_first_report()
        hints = "" if "did you mean" in message else "".join(self._misspelt())
        super().error(message + hints)

    def _misspelt(self) -> Iterator[str]:
        """Yield what comes closest to each given option that is none of this parser."""
        known = tuple(self.options())
        given = self._given[: self._given.index("--")] if "--" in self._given else self._given
        for text in given:
            word = text.partition("=")[0]
            if word.startswith("--") and word not in known and (close := nearest(word, known)):
                yield f"; {word} is no option{close}"

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            names = [str(name) for name in action.choices]
            raise argparse.ArgumentError(
                action,
                f"{value!r} is not known{nearest(str(value), names)}; "
                f"choose from {', '.join(names)}",
            )


class MainParser(Parser):
    """The parser of ``decdpo`` itself, whose help shows the subcommands in the order of use."""

    def format_help(self) -> str:
        """Return the page that ``decdpo`` and ``decdpo --help`` print."""
        options = "  --help, --version; every command explains itself: decdpo COMMAND --help"
        parts = (self.format_usage() + "\n" + str(self.description), listing(), options, EXIT_CODES)
        return "\n\n".join(parts) + "\n"


def build_parser() -> MainParser:
    """Make the parser; imports nothing heavy, so that ``--help`` is instant."""
    parser = MainParser(
        prog="decdpo",
        usage="decdpo [--help] [--version] COMMAND ...",
        description="Decentralized Direct Preference Optimization over MPI.",
    )
    parser.add_argument("--version", action="version", version=f"decdpo {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", prog="decdpo", parser_class=Parser)
    for name, command in COMMANDS.items():
        module = importlib.import_module(MODULES[name])
        sub = commands.add_parser(
            name,
            help=command.about,
            # Without docstrings (python -OO) the line has to do.
            description=(module.__doc__ or command.about).strip(),
            epilog=examples(command),
        )
        module.add_arguments(sub)
        sub.set_defaults(run=by_one_process(name, module.run), parser=sub)
    return parser


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace | None:
    """Return the parsed command line, or None after printing the help that no command asks for.

    Exits with status 2 for a command line that cannot be understood.
    """
    parser = build_parser()
    if "_ARGCOMPLETE" in os.environ:
        from decdpo.commands.machine.completion import answer

        answer(parser)
    args = parser.parse_args(argv)
    if not hasattr(args, "run"):
        parser.print_help()
        return None
    return args
