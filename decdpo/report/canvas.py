"""Figures without a display: drawn in memory, whatever the environment says of displays."""

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

from decdpo.errors import DecdpoError, EnvironmentFault

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


def blank(size: tuple[float, float]) -> Any:
    """Return an empty matplotlib figure of ``size`` inches that renders with Agg.

    Raises ``EnvironmentFault`` if matplotlib is not installed.
    """
    try:
        with without_display():
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
    except ImportError as fault:
        raise EnvironmentFault(
            f"drawing needs matplotlib, which cannot be imported: {fault}",
            "pip install 'decdpo[plot]'",
        ) from None
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


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
