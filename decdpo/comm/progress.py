"""Keeping messages moving while this process computes."""

import threading
from collections.abc import Callable
from contextlib import suppress


class Progress:
    """A thread that calls ``probe`` now and then while messages are in flight.

    Most MPI libraries move a large message only inside a call of either side. Probing a private
    communicator, where nothing ever arrives, makes such a call without touching any request; the
    interpreter lock is free meanwhile. The thread sleeps without waking while it is paused.

    probe : one call into the library; ``probes`` takes more. pause : seconds between two rounds.
    """

    def __init__(self, probe: Callable[[], object], pause: float = 2e-4) -> None:
        self.probes = [probe]
        self._pause = pause
        self._busy = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._drive, name="decdpo-progress", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether it is probing."""
        return self._busy.is_set()

    def resume(self) -> None:
        """Begin to probe."""
        self._busy.set()

    def suspend(self) -> None:
        """Stop probing until ``resume``."""
        self._busy.clear()

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._busy.set()
        self._thread.join()

    def _drive(self) -> None:
        while True:
            self._busy.wait()
            if self._closed.wait(self._pause):
                return
            # What fails here fails again in the thread that waits, which raises it.
            with suppress(Exception):
                for probe in list(self.probes):
                    probe()
