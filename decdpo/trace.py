"""A timeline of one process in the Chrome trace format: compute, post, wait, mix, checkpoint.

Open the files of a run in chrome://tracing or https://ui.perfetto.dev; one process a file.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from time import monotonic
from typing import TextIO

LANES = ("compute", "post", "wait", "mix", "measure", "checkpoint")
"""Kinds of span; each is drawn on a line of its own."""

MOST_EVENTS = 500_000
"""Later spans are dropped, so that a long run cannot fill the disk; the file says how many."""
PERIOD = 1.0
"""Seconds after which spans are on disk, whatever becomes of the process."""


class ChromeTrace:
    """Writes spans into one JSON document, which is whole after every write.

    path : of the document, whose folder is made if need be. process : number of this process.
    label : its name in the viewer.

    Attributes: dropped, the number of spans beyond ``MOST_EVENTS``; fault, what the system said
    when the document could not be written, after which the timeline ends. Raises ``OSError`` if it
    cannot be made.
    """

    def __init__(self, path: Path, process: int, label: str) -> None:
        self.process = process
        self.dropped = 0
        self.fault: OSError | None = None
        self._count = 0
        self._fresh: list[dict[str, object]] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: TextIO = path.open("w", encoding="utf-8")
        self._file.write('{"traceEvents": [\n')
        self._end = self._file.tell()
        self._fresh.append(self._label("process_name", 0, label))
        self._fresh += [self._label("thread_name", lane, name) for lane, name in enumerate(LANES)]
        self._written = 0.0
        self._comma = ""  # before the first event of all
        self.flush()

    def __call__(self, name: str, begin: float, end: float, where: Mapping[str, int]) -> None:
        """Add a span from ``begin`` to ``end``, in seconds of ``time.perf_counter``."""
        if self._count >= MOST_EVENTS or self.fault is not None:
            self.dropped += 1
            return
        self._count += 1
        lane = LANES.index(name) if name in LANES else len(LANES)
        self._fresh.append(
            {
                "name": name,
                "ph": "X",
                "ts": round(begin * 1e6, 3),
                "dur": round((end - begin) * 1e6, 3),
                "pid": self.process,
                "tid": lane,
                "args": dict(where),
            }
        )
        if monotonic() - self._written >= PERIOD:
            self.flush()

    def flush(self) -> None:
        """Write what has been added, and the end of the document after it."""
        if self.fault is not None or self._file.closed:
            return
        text = ",\n".join(json.dumps(event) for event in self._fresh)
        other = json.dumps({"dropped_spans": self.dropped})
        try:
            self._file.seek(self._end)
            self._file.write(self._comma + text if text else "")
            end = self._file.tell()
            self._file.write(f'\n], "otherData": {other}}}\n')
            self._file.flush()
        except OSError as fault:
            self.fault = fault
            return
        self._end, self._comma = end, ",\n"
        self._fresh.clear()
        self._written = monotonic()

    def settle(self, seconds: float) -> bool:
        """End the document before the job ends, which takes no time; return True."""
        self.close()
        return True

    def close(self) -> None:
        """Write what is left; ``fault`` says whether all could be written."""
        self.flush()
        try:
            self._file.close()
        except OSError as fault:
            self.fault = self.fault or fault

    def _label(self, kind: str, lane: int, name: str) -> dict[str, object]:
        return {"name": kind, "ph": "M", "pid": self.process, "tid": lane, "args": {"name": name}}
