"""matplotlib as figures need it: no window, no settings of the user, no words of its own."""

import functools
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from decdpo.errors import DecdpoError, EnvironmentFault
from decdpo.files import replacing

P = ParamSpec("P")
T = TypeVar("T")


@contextmanager
def without_display() -> Iterator[None]:
    """Hide MPLBACKEND while open: matplotlib refuses to be imported under a name it does not know.

    Every shell that is started from Jupyter or Colab inherits the variable.
    """
    before = os.environ.get("MPLBACKEND")
    os.environ["MPLBACKEND"] = "Agg"
    try:
        yield
    finally:
        if before is None:
            del os.environ["MPLBACKEND"]
        else:
            os.environ["MPLBACKEND"] = before


@contextmanager
def drawing() -> Iterator[Any]:
    """Yield matplotlib, to make and save figures as long as this is open.

    The user's matplotlibrc is not asked, and what the library warns of (a font without a character,
    a cache that it makes) is not for the user of this program.

    Raises ``EnvironmentFault`` if matplotlib is not installed or cannot be imported.
    """
    log = logging.getLogger("matplotlib")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            matplotlib = _load()
            with matplotlib.rc_context():
                matplotlib.rcdefaults()
                matplotlib.rcParams.update({"svg.hashsalt": "decdpo", "svg.fonttype": "none"})
                yield matplotlib
    finally:
        log.setLevel(level)


def _load() -> Any:
    try:
        with without_display():
            import matplotlib
            import matplotlib.backends.backend_agg
            import matplotlib.figure
    except ImportError as fault:
        raise EnvironmentFault(
            f"drawing needs matplotlib, which cannot be imported: {fault}",
            "pip install 'decdpo[plot]'",
        ) from None
    return matplotlib


def blank(matplotlib: Any, width: float, height: float) -> Any:
    """Return an empty figure of ``width`` x ``height`` inches that renders with Agg."""
    canvas = matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
    matplotlib.backends.backend_agg.FigureCanvasAgg(canvas)
    return canvas


def save(canvas: Any, path: Path, dpi: float = 150) -> None:
    """Write a figure to ``path``, whose suffix says as what; the same numbers give the same SVG.

    Raises ``EnvironmentFault`` without room to write.
    """
    kind = path.suffix.removeprefix(".").lower()
    about = {"Date": None} if kind == "svg" else {"CreationDate": None} if kind == "pdf" else {}
    with replacing(path, mode=0o644) as partial:
        canvas.savefig(partial, format=kind, dpi=dpi, metadata=about)


def plain(text: str) -> str:
    """Return ``text`` for a label, where a dollar sign would begin mathematics."""
    return text.replace("$", r"\$")


def picture(draw: Callable[P, T]) -> Callable[P, T]:
    """Let a function that draws raise ``EnvironmentFault`` whatever goes wrong inside matplotlib.

    Fonts, caches, settings and folders for temporary files are the machine's: none of them may end
    a run or a study that is finished.
    """

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return draw(*args, **kwargs)
        except (DecdpoError, BrokenPipeError):
            raise
        except Exception as fault:
            text = " ".join(str(fault).split())[:300]
            raise EnvironmentFault(
                f"the figure was not drawn: {type(fault).__name__}: {text}",
                "look at matplotlib's settings (matplotlibrc, MPLCONFIGDIR) and at the disk",
            ) from fault

    return drawn
