"""Figures: whatever the environment says of displays, and whatever fails inside matplotlib."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from limits import HANG

from decdpo.errors import DataError, EnvironmentFault
from decdpo.report.canvas import picture, without_display

pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra plot)")


def test_a_backend_inherited_from_a_notebook_is_not_asked(tmp_path: Path) -> None:
    code = (
        "import os\nfrom pathlib import Path\nfrom decdpo.report.curves import plot_run\n"
        "plot_run([{'round': 1, 'loss': 0.5}], Path('curves.png'), 'a run')\n"
        "print(os.environ['MPLBACKEND'])"
    )
    backend = "module://matplotlib_inline.backend_inline"
    environ = {**os.environ, "MPLBACKEND": backend}
    environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, cwd=tmp_path, capture_output=True, text=True,
        timeout=HANG,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, backend), done.stderr
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_the_variable_is_as_it_was_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MPLBACKEND", raising=False)
    with without_display():
        assert os.environ["MPLBACKEND"] == "Agg"
    assert "MPLBACKEND" not in os.environ


@pytest.mark.parametrize(
    "fault", [ValueError("no such\nfont"), OSError(28, "No space left"), UserWarning("glyph")]
)
def test_whatever_fails_is_one_error(fault: Exception) -> None:
    @picture
    def draw() -> None:
        raise fault

    with pytest.raises(EnvironmentFault, match="the figure was not drawn: ") as caught:
        draw()
    assert type(fault).__name__ in caught.value.what and "\n" not in caught.value.what


def test_an_error_with_a_remedy_stays_itself() -> None:
    @picture
    def draw() -> None:
        raise DataError("no record", "record one")

    with pytest.raises(DataError):
        draw()
