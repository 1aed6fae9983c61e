"""The page of bad inputs: every case ends with its status and one clear message."""

import contextlib
import shutil

import bad_inputs
import pytest


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    bad_inputs.make_folder(folder)
    return folder


@pytest.mark.parametrize("case", bad_inputs.CASES, ids=lambda case: case.name)
def test_bad_input(case, template, tmp_path):
    shutil.copytree(template, tmp_path / "here")
    with contextlib.chdir(tmp_path / "here"):
        wrong, said = bad_inputs.faults(case)
    assert not wrong, f"{wrong}\n{said}"


def test_there_are_enough_of_them():
    assert len(bad_inputs.CASES) >= 40
