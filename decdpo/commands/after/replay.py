"""Make a run again in one process, and compare every agent with its newest checkpoint.

A run is determined by its configuration and by who was lost when; that history is in every
checkpoint. So every process that was left must hold what one process computes, to the bit.
"""

import argparse
import json
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``decdpo replay``."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="run folder")
    parser.add_argument(
        "--round", type=int, metavar="N", help="compare with the checkpoint of this round"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Replay, and return 0 if all agents are the same, else 1."""
    import sys

    from decdpo.session.job import Job, launch
    from decdpo.session.record import read_run
    from decdpo.session.replay import replay

    def say(line: str) -> None:
        if not args.json:
            print(line)

    def body(job: Job) -> int:
        config = read_run(args.folder, [], lambda line: print(line, file=sys.stderr), training=True)
        found = replay(job, config, args.folder, say, args.round)
        if args.json:
            history = found.history.to_json()
            agents = {str(agent): same for agent, same in found.agents.items()}
            text = {"round": found.round, "history": history, "agents": agents}
            print(json.dumps({**text, "exact": found.exact}, indent=2))
        else:
            odd = [str(agent) for agent, same in found.agents.items() if not same]
            print(
                f"after round {found.round}: of {len(found.agents)} agents "
                + (f"{', '.join(odd)} differ" if odd else "every one has the same bits")
            )
        return 0 if found.exact else 1

    return launch(body, "local", None)
