"""The contracts on imports in setup.cfg leave out no module."""

import configparser
import pkgutil
from pathlib import Path

import decdpo

ROOT = Path(decdpo.__file__).parents[1]

MAY_LEAD_TO_MPI = (
    "decdpo.__main__",
    "decdpo.cli",
    "decdpo.parser",
    "decdpo.commands.alone",
    *(f"decdpo.commands.{name}" for name in (
        "machine.completion", "machine.doctor", "data.shard", "before.theory", "before.tokens",
        "training.resume", "training.train", "after.evaluate", "after.export", "after.replay",
        "after.report", "after.status", "studies.bench", "studies.study",
    )),
    "decdpo.studies",
    *(f"decdpo.session.{name}" for name in (
        "adoption", "endings", "experiment", "folder", "growing", "identity", "job", "measuring",
        "replay", "shown", "status", "training",
    )),
    "decdpo.benchmarks",
    "decdpo.comm.mpi",
)  # fmt: skip
"""What starts processes, joins them, or calls what does; all else is imported without MPI."""


def contract(name: str) -> configparser.SectionProxy:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return config[f"importlinter:contract:{name}"]


def within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def modules() -> list[str]:
    """Return every module of the package, but packages whose modules stand for them."""
    found = [module for module in pkgutil.walk_packages([str(ROOT / "decdpo")], "decdpo.")]
    assert len(found) > 200
    return [module.name for module in found if not module.ispkg]


def test_every_module_is_free_of_mpi_or_may_lead_to_it() -> None:
    free = tuple(contract("science")["source_modules"].split())
    unlisted = [m for m in modules() if not within(m, free) and not within(m, MAY_LEAD_TO_MPI)]
    assert not unlisted, f"list {unlisted} in the contract science of setup.cfg"


def test_no_module_is_left_out_of_the_layers() -> None:
    for name in ("layers", "session", "build"):
        assert contract(name)["exhaustive"] == "True"


def test_mpi4py_is_forbidden_to_the_whole_package_but_one_module() -> None:
    mpi = contract("mpi")
    assert mpi["source_modules"].split() == ["decdpo"]
    assert mpi["ignore_imports"].strip() == "decdpo.comm.mpi.boot -> mpi4py"


def test_no_folder_and_no_module_is_too_large_to_look_over() -> None:
    for folder in {path.parent for path in (ROOT / "decdpo").rglob("*.py")}:
        assert len(list(folder.glob("*.py"))) <= 20, folder
    for path in (ROOT / "decdpo").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path
