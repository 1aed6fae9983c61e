"""What ``decdpo bench checkpoint`` measured, for people."""

from collections.abc import Mapping
from typing import Any

from decdpo.report.plan_table import size


def checkpoint_table(page: Mapping[str, Any]) -> str:
    """Return the measurement as lines of text."""
    lines = [
        f"{size(page['bytes'])} of {page['agents']} agents, {page['repeats']} repeats in turns, "
        "fsync included",
        f"{'':<22}{'median ms':>10}{'least':>9}{'most':>9}{'MB/s':>8}{'/ raw':>8}{'cpu ms':>8}",
    ]
    for name, row in page["rows"].items():
        computing = name.startswith("computing")
        rate = "" if computing else f"{page['bytes'] / 1e6 / row['median_s']:.0f}"
        ratio = "" if computing else f"{row['ratio_to_raw']:.2f}"
        cpu = "" if row["cpu_s"] is None else f"{row['cpu_s'] * 1e3:.0f}"
        lines.append(
            f"{name:<22}{row['median_s'] * 1e3:>10.1f}{row['min_s'] * 1e3:>9.1f}"
            f"{row['max_s'] * 1e3:>9.1f}{rate:>8}{ratio:>8}{cpu:>8}"
        )
    lines.append(
        f"with checkpoint.every = \"auto\" and a failure a day, writing goes on for "
        f"{page['share']:.2%} of the time, and training waits {page['blocked_share']:.2%} of it"
    )
    return "\n".join(lines)
