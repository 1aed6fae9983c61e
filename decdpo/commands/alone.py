"""Commands that are the work of one process, however many a launcher started."""

import argparse
from collections.abc import Callable

from decdpo.comm.mpi.launch import launched_by_mpi, let_the_first_report
from decdpo.errors import EnvironmentFault

ON_ALL_PROCESSES = ("train", "resume", "evaluate", "theory", "doctor")
"""Commands whose processes work together."""

STARTS_MPIRUN = ("study", "bench")
"""Commands that start mpirun themselves, which a process under mpirun cannot."""

TOGETHER_WITH = {"shard": "reference"}
"""Commands whose processes work together if they are given this option."""

Run = Callable[[argparse.Namespace], int]


def look_early(read: Callable[[Callable[[str], None]], object]) -> None:
    """Read what a command needs before anything large is imported, if this process is alone.

    A mistake in a configuration then is named at once. Of several processes all read it later, and
    one says what is wrong. read : is given what prints a line, here nothing.
    """
    if launched_by_mpi() is None:
        read(lambda line: None)


def by_one_process(name: str, run: Run) -> Run:
    """Return the command ``name`` so that several processes of one launch do not do it twice.

    The first process does it, the others wait for its end and share its exit status. The result
    raises ``EnvironmentFault`` under a launcher for a command that starts one itself. Collective
    under a launcher.
    """
    if name in ON_ALL_PROCESSES:
        return run

    def alone(args: argparse.Namespace) -> int:
        size = launched_by_mpi()
        together = name in TOGETHER_WITH and vars(args)[TOGETHER_WITH[name]]
        if size is None or together:
            return run(args)
        if name in STARTS_MPIRUN:
            let_the_first_report()
            raise EnvironmentFault(
                f"decdpo {name} was started {size} times by a launcher, but starts mpirun itself",
                "leave mpirun (or srun) out and use --ranks",
            )
        return _by_the_first(name, run, args)

    return alone


def _by_the_first(name: str, run: Run, args: argparse.Namespace) -> int:
    from decdpo.session.job import Job, launch

    def body(job: Job) -> int:
        if job.size > 1:
            job.say(f"{name} is the work of one process: the first of {job.size} does it")
        code = job.together(lambda: run(args) if job.is_root else 0, work=f"run {name}")
        return int(max(job.boot.collect({i: code for i in job.boot.local_agents}).values()))

    return launch(body)
