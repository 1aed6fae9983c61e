"""How long tests wait for what must come: so long that a loaded machine never decides a test."""

import time
from collections.abc import Callable

HANG = 240.0
"""Seconds after which what a test has started counts as hanging.

Far beyond what the slowest takes beside others, and below the limit of a test in setup.cfg.
"""


def await_that(condition: Callable[[], object], what: str) -> None:
    """Return once ``condition()`` holds; fail, naming ``what`` did not come, after ``HANG``."""
    end = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {HANG:.0f} s"
        time.sleep(0.005)
