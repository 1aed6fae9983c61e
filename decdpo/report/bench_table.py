"""What ``decdpo bench exchange`` measured, as a table for people."""

from typing import Any

_COLUMNS = ("ours", "ours_p2p", "bare", "pass", "memcpy", "window", "allreduce", "gloo")


def table(records: list[dict[str, Any]]) -> str:
    """Return the medians in ms as text, with the ratios that matter."""
    ratios = {
        "/bare": "ratio_to_bare",
        "/(bare+pass)": "ratio_to_bare_plus_pass",
        "/window": "ratio_to_window",
    }
    head = ["ranks", "graph", "floats", *_COLUMNS, "spread", *ratios, "overhead us"]
    lines = [head]
    notes: list[str] = []
    loads: list[float] = []
    for item in records:
        cell = [str(item["ranks"]), item["graph"], f"{item['size']:.0e}"]
        if "skipped" in item:
            notes.append(f"{' '.join(cell)}: skipped, {item['skipped']}")
            continue
        low, high = item["quartiles_ms"]["ours"]
        cell += [_short(item["ms"].get(name)) for name in _COLUMNS]
        cell += [f"{_short(low)}-{_short(high)}"]
        cell += [_short(item.get(key)) for key in ratios.values()]
        cell += [f"{item['overhead_us']:.0f}"]
        lines.append(cell)
        loads.append(item["load"])
        if isinstance(item["hidden"], dict):
            parts = ", ".join(f"{name} {share:.0%}" for name, share in item["hidden"].items())
            notes.append(f"{' '.join(cell[:3])}: hidden behind as much compute: {parts}")
        for name, why in item["skipped_contestants"].items():
            notes.append(f"{' '.join(cell[:3])}: {name} skipped, {why}")
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    rows = ["  ".join(text.rjust(w) for text, w in zip(line, widths)) for line in lines]
    if loads:
        notes.append(
            f"load average of the machine meanwhile: {min(loads):.1f} to {max(loads):.1f} "
            f"on {records[0].get('cores', '?')} cores"
        )
    return "\n".join(["median ms of a round; spread: quartiles of ours", *rows, *notes])


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
