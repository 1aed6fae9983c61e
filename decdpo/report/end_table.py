"""The last word on the time of a run: its parts over processes, rates, and what to do about it."""

from collections.abc import Mapping, Sequence
from typing import Any

from decdpo.timing import PARTS

MOST_WAITING, MOST_MEASURING = 0.2, 0.1
"""Shares of the time above which something is said."""

UNEVEN = 1.25
"""Imbalance above which a wait is that for the busiest process."""

SHORTEST = 10.0
"""Seconds below which a run gets no advice."""


def end_table(end: Mapping[str, Any], warnings: Sequence[str] = ()) -> list[str]:
    """Return the lines of the table.

    end : of ``account.Account.close``. warnings : of the start, that ranks share cores.
    """
    processes, rounds, seconds = end["processes"], end["rounds"], end["seconds"]
    where = "1 process" if processes == 1 else f"{processes} ranks"
    pace = f", {seconds / rounds:.4g} s a round" if rounds else ""
    again = f", {redone:,} of them for the second time" if (redone := end["redone_rounds"]) else ""
    lines = [f"{rounds:,} rounds{again} on {where} in {seconds:,.1f} s{pace}"]
    if not rounds:
        return lines
    lines.append(f"{'seconds':<12}{'least':>10}{'mean':>10}{'most':>10}{'share':>9}")
    rest = seconds
    for part in PARTS:
        least, mean, most = end["parts"][part]
        rest -= mean
        lines.append(f"{part:<12}{least:>10.3f}{mean:>10.3f}{most:>10.3f}{_share(mean, end):>9.1%}")
    rest = max(rest, 0.0)
    lines.append(f"{'other':<12}{'':>10}{rest:>10.3f}{'':>10}{_share(rest, end):>9.1%}")
    lines.append(", ".join(_rates(end)))
    if end.get("privacy"):
        lines.append(end["privacy"])
    advice = advise(end, warnings)
    return [*lines, f"advice: {advice}"] if advice else lines


def advise(end: Mapping[str, Any], warnings: Sequence[str] = ()) -> str:
    """Return what to do about the one thing that is most off; empty if nothing is."""
    waiting, measuring = (_share(end["parts"][part][1], end) for part in ("wait", "measure"))
    brief = end["seconds"] < SHORTEST
    if warnings and (brief or measuring < 0.5):
        return warnings[0]
    if brief:
        return ""
    if measuring > max(MOST_MEASURING, waiting):
        return (
            f"measuring takes {measuring:.0%} of the time: raise log.every, or lower "
            "log.heldout_pairs and log.gradient_pairs"
        )
    if waiting <= MOST_WAITING:
        return ""
    said = f"ranks wait {waiting:.0%} of the time"
    imbalance = end["imbalance"] or 1.0
    if imbalance > UNEVEN:
        return (
            f"{said}, and the busiest computes {imbalance:.3g} times as long as the mean: give all "
            "ranks as many agents and equal cores, or let messages be late (staleness.kind)"
        )
    return (
        f"{said}: take more local steps in a round (algorithm.local_steps), a graph with fewer "
        "neighbours, or compressed messages"
    )


def _share(seconds: float, end: Mapping[str, Any]) -> float:
    return seconds / end["seconds"] if end["seconds"] > 0 else 0.0


def _rates(end: Mapping[str, Any]) -> list[str]:
    found = [f"{end['pairs_per_second']:,.5g} pairs/s"]
    if end["tokens_per_second"]:
        found.append(f"{end['tokens_per_second']:,.5g} tokens/s")
    if end["mfu"] is not None:
        found.append(f"MFU {end['mfu']:.1%}")
    found.append(f"{end['bytes_between_processes'] / 1e6:,.1f} MB between ranks")
    if end["goodput"] is not None:
        found.append(f"goodput {end['goodput']:.1%}")
    if end["imbalance"] is not None and end["processes"] > 1:
        found.append(f"imbalance {end['imbalance']:.3g}")
    return found
