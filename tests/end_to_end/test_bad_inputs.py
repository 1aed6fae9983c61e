"""The page of bad inputs: every case ends with its status and one clear message."""

import contextlib
import runpy
import shutil
from pathlib import Path

import pytest

PAGE = runpy.run_path(str(Path(__file__).resolve().parents[2] / "tools" / "bad_inputs.py"))


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    PAGE["make_folder"](folder)
    return folder


@pytest.mark.parametrize("case", PAGE["CASES"], ids=lambda case: case.name)
def test_bad_input(case, template, tmp_path):
    shutil.copytree(template, tmp_path / "here")
    with contextlib.chdir(tmp_path / "here"):
        wrong, said = PAGE["faults"](case)
    assert not wrong, f"{wrong}\n{said}"


def test_there_are_enough_of_them():
    assert len(PAGE["CASES"]) >= 40
