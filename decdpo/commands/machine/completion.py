"""Print what makes a shell complete commands, options, configuration keys and names.

bash and fish: for one session `eval "$(decdpo completion bash)"` or `decdpo completion fish |
source`; for all, write it where the shell looks, as in the examples below. The shell then asks
decdpo itself, so that `--set` completes sections, keys and the values that a key may take.
"""

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import Field
from typing import Any

from decdpo.errors import EnvironmentFault

SHELLS = ("bash", "zsh", "fish", "tcsh")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``decdpo completion``."""
    parser.add_argument("shell", choices=SHELLS, help=f"one of {', '.join(SHELLS)}")


def run(args: argparse.Namespace) -> int:
    """Print the shell's code."""
    print(_argcomplete().shellcode(["decdpo"], shell=args.shell))
    return 0


def answer(parser: argparse.ArgumentParser) -> None:
    """Print the completions of the line that the shell holds, and end the process."""
    completers = {"set": assignments, "allow": keys, "graphs": graphs, "name": studies}
    for action in _actions(parser):
        if action.dest in completers and not action.choices:
            action.completer = completers[action.dest]  # type: ignore[attr-defined]
    _argcomplete().autocomplete(parser, always_complete_options="long")


def assignments(prefix: str, **_: Any) -> list[str]:
    """Return the words that ``--set`` may take after ``prefix``: keys, then their values."""
    key, equals, _value = prefix.partition("=")
    if not equals:
        return [f"{name}=" for name in sorted({name for name, *_ in _options()})]
    found = {value for name, field, kinds in _options() if name == key
             for value in _values(field, kinds)}
    return [f"{key}={value}" for value in sorted(found)]


def keys(**_: Any) -> list[str]:
    """Return the keys of the configuration."""
    return sorted({name for name, *_ in _options()})


def graphs(**_: Any) -> tuple[str, ...]:
    """Return the names of the graphs."""
    from decdpo.topology.names import GRAPHS

    return tuple(GRAPHS)


def studies(**_: Any) -> tuple[str, ...]:
    """Return the names of the built-in studies."""
    from decdpo.studies.catalogue import STUDIES

    return tuple(STUDIES)


def _options() -> Iterator[tuple[str, "Field[Any]", Iterable[str]]]:
    """Yield every key with its field and, of a section with kinds, their names."""
    from decdpo.config.options import options
    from decdpo.config.schema import SECTIONS

    for section, schema in SECTIONS.items():
        classes = schema.values() if isinstance(schema, dict) else [schema]
        kinds = tuple(schema) if isinstance(schema, dict) else ()
        for cls in classes:
            for key, field, _ in options(cls):
                yield f"{section}.{key}", field, kinds if key == "kind" else ()


def _values(field: "Field[Any]", kinds: Iterable[str]) -> Iterable[str]:
    if isinstance(field.default, bool):
        return ("true", "false")
    return kinds or field.metadata["choices"]


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the actions of a parser and of those under it."""
    for action in parser._actions:
        yield action
        if isinstance(action.choices, dict):
            for below in action.choices.values():
                yield from _actions(below)


def _argcomplete() -> Any:
    try:
        import argcomplete
    except ImportError:
        raise EnvironmentFault(
            "completion needs argcomplete, which is not installed", "pip install argcomplete"
        ) from None
    return argcomplete
