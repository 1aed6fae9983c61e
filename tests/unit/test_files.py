"""What the system refuses is said in one place; what is written replaces the old as a whole."""

import ast
import errno
import os
from pathlib import Path

import pytest

import decdpo
from decdpo.errors import DataError, EnvironmentFault
from decdpo.files import naming, os_fault, reason, replacing

PACKAGE = Path(decdpo.__file__).parent


def test_only_one_module_reads_what_the_system_says() -> None:
    users = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "strerror"
        and not (isinstance(node.value, ast.Name) and node.value.id == "os")
    }  # fmt: skip
    assert users == {"files.py"}


def test_a_library_that_wraps_the_system_is_unwrapped() -> None:
    text = "Unable to open file (errno = 28, error message = 'No space left on device')"
    assert reason(OSError(errno.ENOSPC, text)) == "No space left on device"
    assert reason(OSError(errno.EINVAL, "it is a named pipe, not a file")).startswith("it is a")
    assert reason(OSError("CRC check failed")) == "CRC check failed"


@pytest.mark.parametrize(
    ("code", "remedy"), [(errno.ENOSPC, "free some space"), (errno.ENAMETOOLONG, "check that")]
)
def test_the_remedy_is_that_of_the_refusal(code: int, remedy: str) -> None:
    fault = os_fault(OSError(code, os.strerror(code), "/some/where"))
    assert fault.what == f"/some/where: {os.strerror(code)}" and remedy in fault.remedy


def test_an_error_is_of_the_kind_that_is_asked_for(tmp_path: Path) -> None:
    fault = os_fault(OSError(errno.EIO, "Input/output error"), "x", remedy="y", kind=DataError)
    assert type(fault) is DataError and (fault.what, fault.remedy) == ("x: Input/output error", "y")
    with pytest.raises(EnvironmentFault) as caught, naming("no trace", tmp_path, "all is well"):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    assert caught.value.what == f"no trace: {tmp_path}: Permission denied"
    assert caught.value.remedy.endswith("; all is well")


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(EnvironmentFault, match=f"cannot write {path}: No space"):
        with replacing(path) as partial:
            partial.write_text("ne")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["x"]
    with replacing(path) as partial:
        partial.write_text("new")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["x"]
