"""How many threads of torch a computation is worth."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on the calling thread alone.

    Some functions, ``logsigmoid`` among them, divide even a few values between the threads of
    torch. Every such division waits for all threads, and so for whatever else runs on the cores;
    between two of them the threads spin.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
