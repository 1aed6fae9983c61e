"""Print the held-out accuracies of several runs side by side.

    python tools/demo_table.py RUN...

Each RUN holds ``heldout.json``, what ``decdpo evaluate RUN --json`` printed.
"""

import json
import sys
from pathlib import Path
from typing import Any


def table(runs: dict[str, dict[str, Any]]) -> str:
    """Return the table of ``runs``, by name: one column each, one line per agent and for all."""
    head = "accuracy on held-out pairs"
    lines = [f"{head:<34}" + "".join(f"{name:>13}" for name in runs)]
    lines.append("-" * len(lines[0]))

    def line(label: str, accuracies: list[float]) -> None:
        lines.append(f"{label:<34}" + "".join(f"{a:>13.3f}" for a in accuracies))

    agents = next(iter(runs.values()))["agents"]
    for i, agent in enumerate(agents):
        label = f"agent {agent['agent']} {agent['name']}, its own model"
        line(label, [run["agents"][i]["own"]["accuracy"] for run in runs.values()])
    line("all agents, their own models", [run["own"]["accuracy"] for run in runs.values()])
    line("all agents, the average model", [run["average"]["accuracy"] for run in runs.values()])
    return "\n".join(lines)


def main(folders: list[str]) -> int:
    """Print the table of the run folders ``folders``."""
    if not folders:
        print(__doc__, file=sys.stderr)
        return 2
    runs = {f: json.loads((Path(f) / "heldout.json").read_text()) for f in folders}
    print(table({Path(f).name: run for f, run in runs.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
