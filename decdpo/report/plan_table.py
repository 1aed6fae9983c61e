"""What ``decdpo plan`` found out, for people."""

from collections.abc import Mapping
from typing import Any


def plan_table(page: Mapping[str, Any]) -> str:
    """Return the plan as lines of text."""
    most, ranks = page["agents_of_a_rank"], page["ranks"]
    where = "1 rank" if ranks == 1 else f"{ranks} ranks, at most {most} on one"
    lines = [
        f"{page['agents']} agents on {where}; {page['policy']}, {page['optimizer']}",
        "memory of that rank",
    ]
    for name, needed in page["memory"].items():
        if needed:
            lines.append(f"  {name:<26}{size(needed):>10}")
    lines.append(f"  {'in all':<26}{size(page['total_bytes']):>10}")
    saved, sent = page["checkpoint"], page["round"]
    written = "written as time asks" if saved["written"] is None else f"{saved['written']} written"
    lines += [
        f"a checkpoint: {saved['files']} files, {size(saved['bytes'])}; {written} "
        f"and {saved['kept']} kept",
        f"a round: {sent['messages']:,} messages of {size(sent['message_bytes'])}, "
        f"{size(sent['bytes'])} in all; {sent['between_ranks']:,} between ranks",
    ]
    return "\n".join([*lines, *(f"does not fit: {doubt}" for doubt in page["doubts"])])


def size(count: int) -> str:
    """Return bytes in words: "1.5 GB"."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.4g} {unit}"
    return f"{count} bytes"
