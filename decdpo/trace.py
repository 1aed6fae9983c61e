"""A timeline of one process in the Chrome trace format: compute, post, wait, mix, checkpoint.

Open the files of a run in chrome://tracing or https://ui.perfetto.dev; one process a file.
"""

import json
from collections.abc import Mapping
from pathlib import Path

LANES = ("compute", "post", "wait", "mix", "measure", "checkpoint")
"""Kinds of span; each is drawn on a line of its own."""

MOST_EVENTS = 500_000
"""Later spans are dropped, so that a long run cannot exhaust the memory; the file says how many."""


class ChromeTrace:
    """Collects spans and writes them as one JSON document.

    process : number of this process. label : its name in the viewer.
    """

    def __init__(self, process: int, label: str) -> None:
        self.process = process
        self.label = label
        self.dropped = 0
        self._events: list[dict[str, object]] = []

    def __call__(self, name: str, begin: float, end: float, where: Mapping[str, int]) -> None:
        """Add a span from ``begin`` to ``end``, in seconds of ``time.perf_counter``."""
        if len(self._events) >= MOST_EVENTS:
            self.dropped += 1
            return
        lane = LANES.index(name) if name in LANES else len(LANES)
        self._events.append(
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

    def write(self, path: Path) -> None:
        """Write the timeline to ``path``, whose folder is made if need be."""
        path.parent.mkdir(parents=True, exist_ok=True)
        labels = [self._label("process_name", 0, self.label)]
        labels += [self._label("thread_name", lane, name) for lane, name in enumerate(LANES)]
        other = {"dropped_spans": self.dropped}
        document = {"traceEvents": [*labels, *self._events], "otherData": other}
        path.write_text(json.dumps(document), encoding="utf-8")

    def _label(self, kind: str, lane: int, name: str) -> dict[str, object]:
        return {"name": kind, "ph": "M", "pid": self.process, "tid": lane, "args": {"name": name}}
