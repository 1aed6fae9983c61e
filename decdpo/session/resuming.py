"""What a resumed run does otherwise than the run it continues: the step size."""

from dataclasses import replace

from decdpo import build
from decdpo.config import Config


def step_sizes(before: Config, now: Config, done: int) -> tuple[float, float] | None:
    """Return the step size that was last taken and the next one, if ``now`` sets another than
    ``before`` would have taken next; None if nothing changes.

    done : rounds that ``before`` has trained.
    """
    steps = now.algorithm.local_steps
    old = build.make_learning_rate(before.optim, before.run.rounds * steps)
    new = build.make_learning_rate(now.optim, now.run.rounds * steps)
    step = done * steps
    if done == 0 or done >= now.run.rounds or new(step) == old(step):
        return None
    return old(step - 1), new(step)


def why_rounds_matter(config: Config, saved: str, done: int) -> str:
    """Say why a run with a cosine schedule cannot be given more rounds unasked.

    saved : ``run.rounds`` as it was saved.
    """
    before = replace(config, run=replace(config.run, rounds=int(saved)))
    sizes = step_sizes(before, config, done)
    ends = 'optim.schedule = "cosine" ends with run.rounds'
    return ends if sizes is None else f"{ends}: the step size would go {change(sizes)}"


def change(sizes: tuple[float, float]) -> str:
    """Name two step sizes."""
    return f"from {sizes[0]:.3g} to {sizes[1]:.3g}"
