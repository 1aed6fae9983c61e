"""What ``decdpo bench step`` measured, as a table for people."""

from collections.abc import Mapping, Sequence
from typing import Any

_HEAD = ("", "CPU-s", "of plain", "pairs/s", "tokens/s", "MFU", "peak GB", "loss, step 2")


def step_table(page: Mapping[str, Any]) -> str:
    """Return one line for each ingredient, then where the time of the last way goes."""
    lines = [_HEAD]
    first: float | None = None
    for record in page["ways"]:
        name = f"+ {record['with'][-1]}" if record["with"] else "plain"
        if "failed" in record:
            lines.append((name, *["-"] * (len(_HEAD) - 2), record["failed"]))
            continue
        first = first or record["cpu_seconds"]
        lines.append(
            (
                name,
                f"{record['cpu_seconds']:.3g}",
                f"{record['cpu_seconds'] / first:.2f}",
                f"{record['pairs_per_second']:.3g}",
                f"{record['tokens_per_second']:.4g}",
                f"{record['mfu']:.0%}",
                f"{record['peak_memory_bytes'] / 1e9:.2f}",
                f"{record['losses'][min(1, len(record['losses']) - 1)]:.6f}",
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(_HEAD))]
    rows = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    ]
    head = (
        f"{page['model']}: {page['batch']} pairs a step of at most {page['max_length']} tokens,"
        f" {page['threads']} thread{'' if page['threads'] == 1 else 's'}, {page['device']}"
    )
    return "\n".join([head, *rows, *_profile(page["ways"]), *page["notes"]])


def _profile(ways: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of the last profile there is."""
    found = next((way for way in reversed(ways) if way.get("profile")), None)
    if found is None:
        return []
    name = f"+ {found['with'][-1]}" if found["with"] else "plain"
    lines = [f"where the time of {name} goes:"]
    for event in found["profile"]:
        lines.append(
            f"  {event['share']:5.1%}  {event['seconds']:8.3g} s  {event['calls']:6,} x"
            f"  {event['operation'][:60]}"
        )
    return lines
