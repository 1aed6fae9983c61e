"""A line of progress: how far the run is, on a terminal or in a batch log."""

import sys
from collections.abc import Mapping
from time import monotonic
from typing import Any, TextIO


class Progress:
    """A live bar with the time left on a terminal, plain lines in a batch log."""

    def __init__(
        self, first: int, last: int, *, enabled: bool, stream: TextIO | None = None
    ) -> None:
        self._stream = stream or sys.stderr
        self._enabled = enabled
        self._first, self._last = first, last
        self._began = monotonic()
        self._shown = self._began if enabled else 0.0
        self._live = enabled and self._stream.isatty()

    def show(self, done: int, record: Mapping[str, Any]) -> None:
        """Show that ``done`` rounds are complete; every 0.1 s on a terminal, else every 10 s."""
        if not self._enabled:
            return
        now = monotonic()
        if now - self._shown < (0.1 if self._live else 10.0) and done != self._last:
            return
        self._shown = now
        left = (now - self._began) / max(done - self._first, 1) * (self._last - done)
        text = f"round {done}/{self._last}"
        for key, label in (
            ("loss", "loss"),
            ("consensus_distance", "consensus"),
            ("heldout/average/accuracy", "held-out accuracy"),
        ):
            if record.get(key) is not None:
                text += f"  {label} {record[key]:.4g}"
        text += f"  {_clock(left)} left"
        if self._live:
            width = 24
            full = width * done // self._last
            self._stream.write(f"\r\x1b[K[{'#' * full}{'.' * (width - full)}] {text}")
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def close(self) -> None:
        """End the live line."""
        if self._live:
            self._stream.write("\n")
            self._stream.flush()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
